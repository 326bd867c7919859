# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Jacobian regularisation: does a small Jacobian make a model robust?
#
# *Robust Learning with Jacobian Regularization* (Hoffman, Roberts & Yaida, 2019) adds a penalty to the loss. It is the
# squared norm of the Jacobian of the outputs with respect to the image, estimated by random projections.
#
# The penalty prescribes no direction. It makes the derivatives of all outputs small, not only those of the loss. Beside the
# papers on alignment, it shows the effect of small derivatives alone.

# %% [markdown]
# ## Settings
# Each knob below shows its value in the preset `quick`. Under another preset, an unchanged knob takes that preset's value.
# Every other setting can be given by name in `settings`, for example `settings = {"momentum": 0.8}`. Values in `settings`,
# and values that papermill passes with `-p`, override every preset, even if they equal quick's. A knob at `None` takes the
# preset's value. To set an optional setting to nothing, write the text `"null"`. Unknown names are refused with a list of
# the allowed names.

# %% tags=["parameters"]
preset: str = "quick"  # quick · laptop · gpu · paper
data: str = "scenes4"  # scenes4 · scenes · cifar10 · cifar100 · stl10 · fashion_mnist · folder:PATH
seeds: list = [0]  # one training with each method per seed
norm: str = "linf"  # norm of the attacks: linf · l2
weight: float = 0.01  # λ_JR
projections: int = 1  # random directions v in each step
penalty: float = 1.0  # λ of the gradient penalty, for comparison
model: str = "small_cnn"  # small_cnn · cnn · resnet18 · vit · vit_conv · …
epochs: int = 10  # number of epochs of each training
train_images: int = 1200  # number of training images; "null": all
test_images: int = 240  # number of test images; "null": all
eps_linf: float = 4 / 255  # ε of the L∞ attacks, for images in [0,1]
autoattack_images: int = 30  # test images for AutoAttack
settings: dict = {}  # any other setting by name

# %%
from IPython.display import display

from paperlib import audit, claims, evaluation, figures, models, studies, training
from paperlib.claims import power
from paperlib.data import load, subset
from paperlib.figures import source, tables
from paperlib.methods import jacobian

run = studies.start("jacobian_norm", globals())
display(run)
power.show(run, jacobian.plan(run.settings))

# %% [markdown]
# ## Data and network

# %%
s = run.settings
images = load(s.data, train_images=s.train_images, validation_images=s.validation_images, test_images=s.test_images,
              image_size=s.image_size, seed=0)
network = training.build(s, images, s.seeds[0]).to(run.device)
display(figures.contact_sheet(run, images.train))
models.summary(network, images.train.images.shape[1:])

# %% [markdown]
# ## The method
# With $J = \partial z / \partial x$ of the logits $z$, and directions $v$ uniform on the unit sphere of logit space,
#
# $$\mathcal{L} = \mathcal{L}_{ce} + \frac{\lambda_{JR}}{2} \, \|J\|_F^2, \qquad
# \|J\|_F^2 = C \; \mathbb{E}_v \left\| \frac{\partial (v \cdot z)}{\partial x} \right\|^2.$$

# %%
source.show(jacobian.squared_norm, jacobian.JacobianRegularisation.loss)

# %% [markdown]
# The next cell passes one batch through the loss and its terms, on the untrained network, as in the middle of the training.
# Step into the call to follow it.

# %%
methods = jacobian.methods(s)
batch, step = training.one_batch(run, images)
terms = methods["jacobian"].loss(network, batch, step)
{name: term.item() for name, term in terms.items()}

# %% [markdown]
# ## Training

# %%
trained = training.train_each(run, methods, images, jacobian.attacks(s)["pgd_20"])
judge = training.judge(run, images)
figures.training_curves(run, training.histories(run, trained), ["clean_accuracy", "robust_accuracy", "jacobian"])

# %% [markdown]
# ## Accuracy
# Low and high bound the 95 % interval, which covers both the test sample and the seeds.

# %%
table = evaluation.evaluate_each(run, trained, images.test, jacobian.attacks(s))
strong = evaluation.evaluate_each(run, trained, subset(images.test, s.autoattack_images, 0), jacobian.strong_attacks(s), "strong")
same = evaluation.same_images(table, ["pgd_margin"], images.test, s.autoattack_images)
summary = evaluation.summary(evaluation.combine(table, same, strong))

# %%
display(tables.save(run, evaluation.wide(summary), "accuracy", "Accuracy (%), 95 % intervals."))
display(figures.accuracies(run, summary))
curve = evaluation.sweep(run, trained, subset(images.test, s.sweep_images, 0), jacobian.attacks(s)["pgd_margin"], s.epsilons)
against_eps = evaluation.against_eps(curve, s.norm)
figures.panels(run, against_eps, "epsilon", x=against_eps.columns[2])

# %% [markdown]
# ## Audit
# Signs that gradients are masked, so that the model only seems robust. A number marked with ! is beyond its threshold.

# %%
checks = audit.audit_each(run, trained, subset(images.test, s.audit_images, 0), eps=s.eps, norm=s.norm, transfer_from=judge)
tables.save(run, checks, "audit", "Signs of masked gradients.")

# %% [markdown]
# ## Verdicts
# *Reproduced*: the 95 % interval of the measured difference, paired by image, is above zero, and the difference is at least
# half of the paper's. *Direction only*: the interval is above zero, but the difference is smaller. *Not reproduced*: the
# interval reaches zero or is below it, and it ends below half of the paper's difference. *Not tested here*: the interval
# contains both zero and that half, a model is missing or at chance, or the paper's own table shows no gain. Without a number
# in the paper, one point replaces that half. The caption lists where the run differs from the paper.

# %%
verdicts = claims.judge("jacobian", run, summary, len(images.test.classes), audit.signs(run))
run.finish()
claims.show(verdicts)
