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
# *Robust Learning with Jacobian Regularization* (Hoffman, Roberts & Yaida, 2019) adds the squared norm of the Jacobian of the outputs
# with respect to the image to the loss, estimated by random projections. It asks for no direction at all, only for a small derivative,
# of all outputs and not of the loss alone: beside the alignment papers it says what smallness by itself is worth.

# %% [markdown]
# ## Settings
# A preset says everything; a parameter that is not `None` overrides it (`"null"` sets what may be nothing).

# %% tags=["parameters"]
preset: str = "quick"  # quick · laptop · gpu · paper
data: str = None  # scenes · cifar10 · cifar100 · stl10 · fashion_mnist · folder:PATH
seeds: list = None
norm: str = None  # linf · l2
weight: float = None  # λ_JR
projections: int = None
penalty: float = None  # λ of the gradient penalty
epsilons: list = None  # of the sweep, as factors of ε
train_images: int = None
validation_images: int = None
test_images: int = None
image_size: int = None
model: str = None  # small_cnn · cnn · resnet18 · vit · vit_conv · …
width: int = None
normalisation: str = None  # none · half · imagenet · cifar10
stem_stride: int = None
eps_linf: float = None
eps_l2: float = None
autoattack_images: int = None
sweep_images: int = None
audit_images: int = None
epochs: int = None
batch_size: int = None
optimizer: str = None  # sgd · adam · adamw
learning_rate: float = None
momentum: float = None
weight_decay: float = None
schedule: str = None  # constant · step · cosine · one_cycle
milestones: list = None
decay: float = None
clip: float = None
ema: float = None
ema_start: float = None
bf16: bool = None
channels_last: bool = None
sync_batch_norm: bool = None  # on several devices: of all their images
crop_padding: int = None
crop_fill: float = None  # or reflect
flip: bool = None
selection: str = None  # mean · robust · last: what an epoch is chosen by
device: str = None  # auto · cpu · cuda
devices: int = None  # that share the work, from the command line alone
venue: str = None  # neurips · iclr · icml · cvpr · aaai · wide

# %%
from paperlib import audit, claims, evaluation, figures, studies, training
from paperlib.claims import power
from paperlib.data import load, subset
from paperlib.figures import source, tables
from paperlib.methods import jacobian

run = studies.start("jacobian_norm", globals())
run

# %% [markdown]
# What these images and seeds can tell: for each claim the smallest true difference that is told from zero four times in five.

# %%
power.show(run, jacobian.plan(run.settings))

# %% [markdown]
# ## Data

# %%
s = run.settings
images = load(s.data, train_images=s.train_images, validation_images=s.validation_images, test_images=s.test_images,
              image_size=s.image_size, seed=0)
figures.contact_sheet(run, images.train)

# %% [markdown]
# ## The method
# With $J = \partial z / \partial x$ of the logits $z$, and directions $v$ drawn evenly from the unit sphere of their space,
#
# $$\mathcal{L} = \mathcal{L}_{ce} + \frac{\lambda_{JR}}{2} \, \|J\|_F^2, \qquad
# \|J\|_F^2 = C \; \mathbb{E}_v \left\| \frac{\partial (v \cdot z)}{\partial x} \right\|^2.$$

# %%
source.show(jacobian.squared_norm, jacobian.JacobianRegularisation.loss)

# %% [markdown]
# ## Training

# %%
trained = training.train_each(run, jacobian.methods(s), images, jacobian.attacks(s)["pgd_20"])
judge = training.judge(run, images)
figures.training_curves(run, training.histories(run), ["clean_accuracy", "robust_accuracy", "jacobian"])

# %% [markdown]
# ## Accuracy

# %%
table = evaluation.evaluate_each(run, trained, images.test, jacobian.attacks(s))
strong = evaluation.evaluate_each(run, trained, subset(images.test, s.autoattack_images, 0), jacobian.strong_attacks(s), "strong")
same = evaluation.same_images(table, ["pgd_margin"], images.test, s.autoattack_images)
summary = evaluation.summary(evaluation.combine(table, same, strong))
tables.save(run, evaluation.wide(summary), "accuracy", "Accuracy (%), 95 % intervals.")

# %%
figures.attack_bars(run, summary)

# %%
curve = evaluation.sweep(run, trained, subset(images.test, s.sweep_images, 0), jacobian.attacks(s)["pgd_margin"], s.epsilons)
figures.epsilon_curves(run, curve)

# %% [markdown]
# ## The audit

# %%
checks = audit.audit_each(run, trained, subset(images.test, s.audit_images, 0), eps=s.eps, norm=s.norm,
                          transfer_from=judge)
tables.save(run, checks, "audit", "Signs of masked gradients.")

# %% [markdown]
# ## Verdicts

# %%
verdicts = claims.judge("jacobian", run, summary, len(images.test.classes), audit.signs(run))
run.finish()
claims.show(verdicts)
