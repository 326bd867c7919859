# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Does alignment tell how robust a model is? Every defence under one protocol
#
# Four papers say that aligning gradients, outputs or attention with something meaningful makes a classifier robust, each with its own
# data, attacks and measures. Here their defences and baselines are trained on the same data with the same network, schedule and
# attack, and, beside that, with the same *compute*. Every model meets every attack, and every alignment is measured on every model,
# whoever it was trained for. DAAT is without its feature alignment, and a convolutional network's attention is the activations of one layer.
# RIGD distils the gradients of this run's own PGD-AT; of RAAT# and its baseline WA the framework is here the moving average of the weights alone.
# Then the question: **which measure of alignment tells how much accuracy AutoAttack leaves, and does any of
# them tell more than the size of the gradient already does?**

# %% [markdown]
# ## Settings
# A preset says everything; a parameter that is not `None` overrides it (`"null"` sets what may be nothing). Combinations that no paper
# tried are a mapping of names to a base and what is added to it, so add your own:
# `combinations = {"pag_raat": {"base": "raat", "add": {"class_mean": 0.1}}}`.

# %% tags=["parameters"]
preset: str = "quick"  # quick · laptop · gpu · paper
data: str = None  # scenes · cifar10 · cifar100 · stl10 · tiny_imagenet · folder:PATH
seeds: list = None
norm: str = None  # linf · l2
train_steps: int = None  # of the attack in training
defences: list = None
weights: dict = None  # of each defence's own term
combinations: dict = None
one_seed: list = None  # trained with the first seed alone: names, "combinations", "equal"
ramp: list = None  # shares of the steps between which ε rises from zero
equal_compute: str = None  # the defence whose multiplications all others get once more; "null": none
classes_per_step: int = None  # K of PAG
neighbors: int = None
eta: float = None  # η of RAAT
average: float = None  # decay per step of the weights' moving average in WA and RAAT#
average_start: float = None  # share of the training before which it is a copy, and RAAT# has no DICAR
oracle: str = None  # exact · learned
depth_images: int = None
depth_epochs: int = None
layer: str = None  # whose activations are a convolutional network's attention
task: str = None  # of GFA: ce · mse
landscape_reach: float = None
measure_images: int = None
queries: int = None  # of Square
minimum_images: int = None  # of DeepFool, EAD, C&W and DDN
minimum_steps: int = None
pixel_images: int = None
pixel_generations: int = None
score_eps: float = None
score_steps: int = None
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
from paperlib.attacks.minimum_norm import l2_attacks, pixel_attacks
from paperlib.claims import power
from paperlib.data import load, subset
from paperlib.evaluation.intervals import distance_table
from paperlib.figures import source, tables
from paperlib.methods import combined
from paperlib.studies import focus, landscape, measures
from paperlib.studies import matrix as study
from paperlib.studies import pag as pag_study

run = studies.start("alignment_matrix", globals())
run

# %% [markdown]
# What these images and seeds can tell: for each claim the smallest true difference that is told from zero four times in five.

# %%
power.show(run, study.plan(run.settings))

# %% [markdown]
# ## Data, and what each defence costs
# Multiplications of a training step over those of plain training, counted and not timed: convolutions and matrix products of all
# passes, the attack's and second derivatives' among them. Of DICAR, which takes only images that are right, the most that it can be;
# of RIGD without the training of its teacher, which counts nowhere below: not at equal compute, nor on the front.
# "equal" is the number of epochs in which each takes as many as the reference, rounded; beside it what that comes to.

# %%
s = run.settings
images = load(s.data, train_images=s.train_images, validation_images=s.validation_images, test_images=s.test_images,
              image_size=s.image_size, seed=0)
size, sample = images.train.images.shape[-1], subset(images.test, s.measure_images, 0)
figures.contact_sheet(run, images.train)

# %%
network = training.build(s, images, 0)
study.check(s, network, sample)
methods = study.methods(s, images.train, network, run.device, training.build(s, images, 0))  # a teacher to count with
cost = measures.costs(methods, network, images, run.device)
equal = measures.equal_epochs(cost, s.equal_compute, s.epochs) if s.equal_compute else None
tables.save(run, measures.cost_table(cost, s.epochs, equal), "cost", "Cost of a step in plain steps, and epochs.", 1)

# %% [markdown]
# ## Training
# A combination is one method's objective with the own terms of others on top,
#
# $$\mathcal{L} = \mathcal{L}_{base} + \sum_i w_i \, \mathcal{L}_i.$$
#
# What another notebook trained by the same recipe is taken from there. PGD-AT comes first: its first seed is
# the teacher of every seed of RIGD.

# %%
source.show(combined.Combined.loss)

# %%
teachers = study.train(run, {"pgd_at": methods["pgd_at"]}, images)["pgd_at"]
methods = study.methods(s, images.train, network, run.device, teachers[s.seeds[0]])
trained = study.train(run, methods, images)
judge = training.judge(run, images)
longer = study.train(run, methods, images, equal) if equal else {}
everything = trained | longer

# %% [markdown]
# ## The matrix
# Accuracy under every attack. Square, transfer, noise, AutoAttack, PGD-100, the other norm and one pixel on fewer images.

# %%
table = evaluation.evaluate_each(run, everything, images.test, study.attacks(s))
few = subset(images.test, s.autoattack_images, 0)
strong = evaluation.evaluate_each(run, everything, few, study.strong_attacks(s, judge), "strong")
others = evaluation.evaluate_each(run, everything, few, study.other_attacks(s), "others")
pixel = evaluation.evaluate_each(run, everything, subset(images.test, s.pixel_images, 0), pixel_attacks(s.pixel_generations), "pixel")

# %%
same = evaluation.same_images(table, ["pgd_margin"], images.test, s.autoattack_images)
summary = evaluation.summary(evaluation.combine(table, same, strong, others, pixel))
rows = summary[summary["method"].isin(list(trained))]
figures.grid(run, rows)

# %%
tables.save(run, evaluation.wide(summary), "accuracy", "Accuracy (%), 95 % intervals.")

# %% [markdown]
# How far the nearest image is that fools a model, by the attacks that look for it: the median L2 distance of the images that it has
# right, and the ratio to PGD-AT's over those that both have right.

# %%
nearest = subset(images.test, s.minimum_images, 0)
distances = evaluation.distances_each(run, everything, nearest, l2_attacks(s.minimum_steps))
tables.save(run, distance_table(distances, "pgd_at"), "distances", "L2 distance to the boundary.", 2)

# %% [markdown]
# Each against PGD-AT, image by image and over seeds.

# %%
gaps = evaluation.gaps(summary, "pgd_at", ["clean", "pgd_margin", "autoattack"])
tables.save(run, gaps, "gaps", "Difference to PGD-AT in points.")

# %% [markdown]
# ## Every alignment of every model
# All in evaluation mode, as an attack meets the model, and GFA's cosine of cross-entropy for all. Each is turned so that more should be
# more robust.

# %%
aligned = focus.by_image(run, everything, sample, measures.per_image, targets=study.toward_means(images.train, run.device),
                         layers=study.layers(network, images.train), attack=study.attacks(s)["pgd_margin"],
                         attention=study.attention(s), target=study.target(s, size), eps=s.eps, norm=s.norm)

# %%
scores = pag_study.scores_each(run, everything, judge, sample)
flat = landscape.flatness(run, everything, sample)
measured = evaluation.combine(table, strong, others, aligned, scores, flat)
models = measures.by_model(measured)
tables.save(run, models[[name for name in measures.MEASURES if name in models]], "measures", "Alignment of each model.", 3)

# %% [markdown]
# ## Which measure tells?
# Spearman's rank correlation over models with accuracy under AutoAttack, and under PGD on the margin, which has more images; then what
# is left of it beside the size of the gradient, which is what alignment may come down to. The intervals resample methods.
# Models that have hardly learnt are left out, which at quick sizes may leave none: an attack takes little from them,
# whatever their gradients are like.

# %%
learnt = measures.learnt(models, table, len(images.test.classes))
left_out = models[~models.index.isin(learnt.index)]
tables.save(run, left_out[["clean", "autoattack"]], "left_out", "Accuracy of what has hardly learnt.", 2)

# %%
tells = measures.predictors(learnt, "autoattack")
tables.save(run, tells, "predictors", "Rank correlation with accuracy under AutoAttack.", 2)

# %%
figures.correlations(run, tells, "autoattack")

# %% [markdown]
# A measure that only tells who trained on adversarial images from who did not has a high rank correlation over all of them. So the
# same within each kind, and every model as a mark.

# %%
kinds = measures.kinds(learnt, study.on_adversarial(s))
tables.save(run, measures.within(kinds, "autoattack"), "within", "Rank correlation with AutoAttack within each kind.", 2)

# %%
shown = kinds | {"close to chance, left out": left_out}
figures.against(run, shown, [name for name in measures.MEASURES if name in models], "autoattack")

# %%
tables.save(run, measures.predictors(learnt, "pgd_margin"), "predictors_margin", "The same with PGD-20 on the margin.", 2)

# %% [markdown]
# ## Accuracy, robustness, cost
# The most robust first. A filled mark: no other is at least as good in all three, and better in one.

# %%
found = measures.front(summary, "autoattack", cost)
figures.front(run, found, "autoattack")

# %% [markdown]
# ## The audit

# %%
checks = audit.audit_each(run, everything, subset(images.test, s.audit_images, 0), eps=s.eps, norm=s.norm, transfer_from=judge)
tables.save(run, checks, "audit", "Signs of masked gradients.")

# %%
evaluation.flags(table, strong, others, pixel)

# %% [markdown]
# ## Verdicts
# What the four papers have in common, held against this protocol. No number is claimed for it, so a gain must be a point at least.

# %%
verdicts = claims.judge("alignment", run, summary, len(images.test.classes), audit.signs(run))
run.finish()
claims.show(verdicts)
