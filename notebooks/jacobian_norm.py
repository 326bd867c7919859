# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Jacobian regularisation: is a model robust whose outputs hardly change with the image?
#
# *Robust Learning with Jacobian Regularization* (Hoffman, Roberts & Yaida, 2019) adds a penalty to the loss. It is the
# squared norm of the Jacobian of the outputs with respect to the image, estimated by random projections.
#
# The penalty asks for no direction, only for small derivatives, of all outputs and not of the loss alone. Beside the
# papers on alignment it shows what small derivatives are worth by themselves.

# %% [markdown]
# ## Settings
# Each knob below shows its value in the preset `quick`. Under another preset, a knob left at that value is as that preset
# says. Any other setting goes by name into `settings`, say `settings = {"momentum": 0.8}`. What stands there counts under
# every preset, also quick's own value. So does what papermill passes with `-p`. In a knob, `None` is as the preset says.
# To set nothing where that is allowed, write the text `"null"`. Unknown names are refused, with a list of those allowed.

# %% tags=["parameters"]
preset: str = "quick"  # quick · laptop · gpu · paper
data: str = "scenes4"  # scenes4 · scenes · cifar10 · cifar100 · stl10 · fashion_mnist · folder:PATH
seeds: list = [0]  # one training with each method for each seed
norm: str = "linf"  # linf · l2, of the attacks
weight: float = 0.01  # λ_JR
projections: int = 1  # random directions v in each step
penalty: float = 1.0  # λ of the gradient penalty, for comparison
model: str = "small_cnn"  # small_cnn · cnn · resnet18 · vit · vit_conv · …
epochs: int = 10  # of each training
train_images: int = 1200  # "null": all
test_images: int = 240  # "null": all
eps_linf: float = 4 / 255  # ε of the linf attacks, images in [0,1]
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
# With $J = \partial z / \partial x$ of the logits $z$, and directions $v$ drawn evenly from the unit sphere of their space,
#
# $$\mathcal{L} = \mathcal{L}_{ce} + \frac{\lambda_{JR}}{2} \, \|J\|_F^2, \qquad
# \|J\|_F^2 = C \; \mathbb{E}_v \left\| \frac{\partial (v \cdot z)}{\partial x} \right\|^2.$$

# %%
source.show(jacobian.squared_norm, jacobian.JacobianRegularisation.loss)

# %% [markdown]
# One batch goes through the loss with its terms, on the untrained network, at the middle of the training. Step into the
# call to follow it.

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
# Low and high are the 95 % interval, of test sample and seeds together.

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
# Signs that gradients are masked rather than the model robust. A figure marked with ! is beyond its threshold.

# %%
checks = audit.audit_each(run, trained, subset(images.test, s.audit_images, 0), eps=s.eps, norm=s.norm, transfer_from=judge)
tables.save(run, checks, "audit", "Signs of masked gradients.")

# %% [markdown]
# ## Verdicts
# *Reproduced*: the 95 % interval of the measured difference, image by image, is above zero, and the difference is at least
# half of the paper's. *Direction only*: it is real but smaller. *Not reproduced*: the interval leaves out half of what the
# paper claims. *Not tested here*: the run lacks a model or has it at chance, or its interval holds both zero and the
# claim. The caption says where the run differs from the paper.

# %%
verdicts = claims.judge("jacobian", run, summary, len(images.test.classes), audit.signs(run))
run.finish()
claims.show(verdicts)
