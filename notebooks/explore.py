# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Explore: one image under attack
#
# Choose a network, an image and an attack, and see at once the perturbation and the network's response. This notebook tests
# no claim and trains nothing.
#
# **Networks.** Use one of the zoo (`paperlib zoo` lists them) or your own: `model = "my_model.py:build"` names a function that
# returns a `torch.nn.Module` for images in [0,1]. Give `weights` and `data` as for `paperlib audit`.

# %% [markdown]
# ## Settings
# The figure shows these settings, and the controls start from them.

# %% tags=["parameters"]
preset: str = "quick"  # the only preset
model: str = "quick/standard-seed1"  # a network of the zoo, or FILE.py:FUNCTION
weights: str = None  # weights file for FILE.py:FUNCTION: safetensors or PyTorch
data: str = None  # scenes4 · scenes · cifar10 · folder:PATH · …; None: the zoo network's data
image: int = 0  # index among the first hundred test images
norm: str = "linf"  # linf · l2
eps: float = 8 / 255  # ε in the norm, for images in [0,1]
loss: str = "ce"  # loss that the attack maximises: ce · margin · dlr
steps: int = 10  # steps of PGD from a random start, of size 2.5 ε / steps
settings: dict = {}  # any other setting by name

# %%
from IPython.display import display

from paperlib import figures, models, studies
from paperlib.studies import explore

run = studies.start("explore", globals())
display(run)

# %%
network, images = explore.subject(run.settings)
models.summary(network, images.images.shape[1:])

# %% [markdown]
# ## The figure
# - **Image and adversarial**: the prediction and its probability, in colour if it is wrong.
# - **Perturbation** $\delta$ and **input gradient** $\nabla_x L$ of the clean image: zero is grey; the largest hundredth is black
#   or white.
# - **Attention** of a transformer, or **Grad-CAM** of the true class at the last layer with a spatial map: bright is large.
# - **Margin** $\max_{j \neq y} z_j - z_y$ at $x + t \delta$, for $t$ from 0 to 1. Above zero the prediction is wrong.
# - **Loss** over a plane: $\delta$ points right, and a random direction of length ε points up. The orange line goes from the
#   image to the adversarial. The white line is the decision boundary. Points of the plane may leave [0,1].

# %%
seen, label = explore.look(run.settings, network, images)
display(figures.close_up(run, seen, label, images.classes, run.settings.norm))
run.finish()

# %% [markdown]
# ## Controls
# Each change of a control draws a new picture. The run is finished: its folder keeps only the figure above.

# %%
explore.controls(run, network, images)
