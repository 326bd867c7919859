# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Explore: one image under attack, seen from all sides
#
# Choose a network, an image and an attack, and see at once what the attack does and what the network makes of it. Nothing is
# claimed here and nothing is trained.
#
# **Networks.** Those of the zoo (`paperlib zoo` lists them), or your own: `model = "my_model.py:build"`, a function that
# returns a `torch.nn.Module` for images in [0,1], with `weights` and `data`, as `paperlib audit` takes them.

# %% [markdown]
# ## Settings
# They are what the figure shows, and where the controls begin.

# %% tags=["parameters"]
preset: str = "quick"  # the one there is
model: str = "quick/standard-seed1"  # a network of the zoo, or FILE.py:FUNCTION
weights: str = None  # of FILE.py:FUNCTION: a file of safetensors or of PyTorch
data: str = None  # scenes4 · scenes · cifar10 · folder:PATH · …; None: those of the zoo's network
image: int = 0  # which of the first hundred test images
norm: str = "linf"  # linf · l2
eps: float = 8 / 255  # ε in the norm, images in [0,1]
loss: str = "ce"  # ce · margin · dlr: what the attack ascends
steps: int = 10  # of PGD, from a random start, at steps of 2.5 ε / steps
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
# - **Image and adversarial**: the answer and its probability, in colour where it is wrong.
# - **Perturbation** $\delta$ and **input gradient** $\nabla_x L$ of the clean image: zero is grey, the largest hundredth black or
#   white.
# - **Attention** of a transformer, or **Grad-CAM** of the true class at the last layer that has places: bright is much.
# - **Margin** $\max_{j \neq y} z_j - z_y$ at $x + t \delta$, for $t$ from 0 to 1. Where it is above zero the answer is wrong.
# - **Loss** over a plane: $\delta$ to the right, up a random direction of length ε. The orange line goes from the image to the
#   adversarial. The white line is where the answer turns wrong. Points there may leave [0,1].

# %%
seen, label = explore.look(run.settings, network, images)
display(figures.close_up(run, seen, label, images.classes, run.settings.norm))
run.finish()

# %% [markdown]
# ## Move
# A picture a move. The run is finished: its folder keeps the figure above, and nothing of what is seen here.

# %%
explore.controls(run, network, images)
