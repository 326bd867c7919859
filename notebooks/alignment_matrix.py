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
# Four papers say that a classifier becomes robust if its gradients, outputs or attention align with something meaningful.
# Each paper has its own data, attacks and measures. Here all defences and baselines are trained on the same data, with the
# same network, schedule and attack, and once more with the same *compute*. Every model is attacked by every attack, and
# every alignment is measured on every model.
#
# Some defences are simplified. DAAT lacks its feature alignment, and a convolutional network's attention is the activation
# of one layer. RIGD distils the gradients of this run's own PGD-AT. RAAT# and its baseline WA use only the moving average of
# the weights from their framework.
#
# The question: **which measure of alignment predicts the accuracy under AutoAttack, and does any predict more than the size
# of the gradient does?**

# %% [markdown]
# ## Settings
# Each knob below shows its value in the preset `quick`. Under another preset, an unchanged knob takes that preset's value.
# Every other setting can be given by name in `settings`, for example `settings = {"momentum": 0.8}`. Values in `settings`,
# and values that papermill passes with `-p`, override every preset, even if they equal quick's. A knob at `None` takes the
# preset's value. To set an optional setting to nothing, write the text `"null"`. Unknown names are refused with a list of
# the allowed names.
#
# `combinations`, which no paper tried, map a name to a base method and the terms that are added to it. Add your own:
# `combinations = {"pag_raat": {"base": "raat", "add": {"class_mean": 0.1}}}`.

# %% tags=["parameters"]
preset: str = "quick"  # quick · laptop · gpu · paper
data: str = "scenes4"  # scenes4 · scenes · cifar10 · cifar100 · stl10 · tiny_imagenet · folder:PATH
seeds: list = [0]  # one training with each defence per seed
norm: str = "linf"  # norm of the attacks: linf · l2
defences: list = ["standard", "gradient_penalty", "class_mean", "first", "pgd_at", "raat", "daat"]  # the preset paper has all
combinations: dict = {}  # name: base and weights of the added terms, for example {"pag_raat": {"base": "raat", "add": {"class_mean": 0.1}}}
equal_compute: str = None  # train all again with the compute of this defence; "null": do not
eta: float = 0.1  # η of RAAT
train_steps: int = 3  # steps of the training attack
epochs: int = 10  # number of epochs of each training
train_images: int = 1200  # number of training images; "null": all
eps_linf: float = 4 / 255  # ε of the L∞ attacks, for images in [0,1]
autoattack_images: int = 25  # test images for AutoAttack
settings: dict = {}  # any other setting by name

# %%
from IPython.display import display

from paperlib import audit, claims, evaluation, figures, models, studies, training
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
display(run)
power.show(run, study.plan(run.settings))

# %% [markdown]
# ## Data and network

# %%
s = run.settings
images = load(s.data, train_images=s.train_images, validation_images=s.validation_images, test_images=s.test_images,
              image_size=s.image_size, seed=0)
size, sample, network = images.train.images.shape[-1], subset(images.test, s.measure_images, 0), training.build(s, images, 0)
display(figures.contact_sheet(run, images.train))
models.summary(network, images.train.images.shape[1:])

# %% [markdown]
# ## The cost of each defence
# The cost is the number of multiplications of a training step, relative to plain training; it is counted, not timed. It
# includes the convolutions and matrix products of all passes, also of the attack and of second derivatives. DICAR uses only
# correctly classified images; its cost here is the largest possible. RIGD's cost never includes the training of its teacher.
#
# "equal" is the rounded number of epochs that costs as much as the reference's training. The next column is the actual cost.

# %%
study.check(s, network, sample)
counted = study.methods(s, images.train, network, run.device, training.build(s, images, 0))  # with any teacher
cost = measures.costs(counted, network, images, run.device)
equal = measures.equal_epochs(cost, s.equal_compute, s.epochs) if s.equal_compute else None
tables.save(run, measures.cost_table(cost, s.epochs, equal), "cost", "Cost of a step in plain steps, and epochs.", 1)

# %% [markdown]
# ## Combinations
# A combination is one method's objective plus terms of other methods,
#
# $$\mathcal{L} = \mathcal{L}_{base} + \sum_i w_i \, \mathcal{L}_i.$$

# %%
source.show(combined.Combined.loss)

# %% [markdown]
# The next cell passes one batch through the loss and its terms, on the untrained network, as in the middle of the training.
# Step into the call to follow it.

# %%
start, first = training.build(s, images, s.seeds[0]).to(run.device), [*s.combinations, *s.defences][0]
batch, step = training.one_batch(run, images, averaged=start)
terms = counted[first].loss(start, batch, step)
{name: term.item() for name, term in terms.items()}

# %% [markdown]
# ## Training
# Networks that another notebook trained by the same recipe are reused. PGD-AT comes first, because its first seed is the
# teacher of every seed of RIGD.

# %%
teachers = study.train(run, {"pgd_at": counted["pgd_at"]}, images)["pgd_at"]
methods = study.methods(s, images.train, network, run.device, teachers[s.seeds[0]])
trained = study.train(run, methods, images)
judge = training.judge(run, images)
longer = study.train(run, methods, images, equal) if equal else {}
everything = trained | longer

# %% [markdown]
# ## The matrix
# This is the accuracy under every attack. Square, transfer, noise, AutoAttack, PGD-100, the other norm and the one-pixel
# attack run on fewer images. The last table has the differences to PGD-AT, paired by image and over seeds.

# %%
few, pixels = subset(images.test, s.autoattack_images, 0), subset(images.test, s.pixel_images, 0)
table = evaluation.evaluate_each(run, everything, images.test, study.attacks(s))
strong = evaluation.evaluate_each(run, everything, few, study.strong_attacks(s, judge), "strong")
others = evaluation.evaluate_each(run, everything, few, study.other_attacks(s), "others")
pixel = evaluation.evaluate_each(run, everything, pixels, pixel_attacks(s.pixel_generations), "pixel")
same = evaluation.same_images(table, ["pgd_margin"], images.test, s.autoattack_images)

# %%
summary = evaluation.summary(evaluation.combine(table, same, strong, others, pixel))
gaps = evaluation.gaps(summary, "pgd_at", ["clean", "pgd_margin", "autoattack"])
display(figures.grid(run, summary[summary["method"].isin(list(trained))]))
display(tables.save(run, evaluation.wide(summary), "accuracy", "Accuracy (%), 95 % intervals."))
tables.save(run, gaps, "gaps", "Difference to PGD-AT in points.")

# %% [markdown]
# How far is the nearest adversarial image that minimum-norm attacks find? The table has the median L2 distance over the
# images that a model classifies correctly. The ratio to PGD-AT's distance is over the images that both classify correctly.

# %%
nearest = subset(images.test, s.minimum_images, 0)
distances = evaluation.distances_each(run, everything, nearest, l2_attacks(s.minimum_steps))
tables.save(run, distance_table(distances, "pgd_at"), "distances", "L2 distance to the boundary.", 2)

# %% [markdown]
# ## Every alignment of every model
# All measures are taken in evaluation mode, as in an attack, and GFA's cosine uses cross-entropy for all models. The sign of
# each measure is chosen so that a larger value should mean more robustness.

# %%
aligned = focus.by_image(run, everything, sample, measures.per_image, targets=study.toward_means(images.train, run.device),
                         layers=study.layers(network, images.train), attack=study.attacks(s)["pgd_margin"],
                         attention=study.attention(s), target=study.target(s, size), eps=s.eps, norm=s.norm)

# %%
scores, flat = pag_study.scores_each(run, everything, judge, sample), landscape.flatness(run, everything, sample)
by_model = measures.by_model(evaluation.combine(table, strong, others, aligned, scores, flat))
measured = [name for name in measures.MEASURES if name in by_model]
tables.save(run, by_model[measured], "measures", "Alignment of each model.", 3)

# %% [markdown]
# ## Which measure predicts robustness?
# The tables have Spearman's rank correlation over models with accuracy under AutoAttack, and under PGD on the margin, which
# has more images. The partial correlation given the size of the gradient follows, because alignment may amount to a small
# gradient. The intervals resample methods. Models near chance are left out, because an attack takes little accuracy from
# them, whatever their gradients are. At quick sizes no model may remain.

# %%
learnt = measures.learnt(by_model, table, len(images.test.classes))
left_out, tells = by_model[~by_model.index.isin(learnt.index)], measures.predictors(learnt, "autoattack")
display(tables.save(run, left_out[["clean", "autoattack"]], "left_out", "Accuracy of what has hardly learnt.", 2))
display(tables.save(run, tells, "predictors", "Rank correlation with accuracy under AutoAttack.", 2))
display(figures.correlations(run, tells, "autoattack"))
tables.save(run, measures.predictors(learnt, "pgd_margin"), "predictors_margin", "The same with PGD-20 on the margin.", 2)

# %% [markdown]
# A measure may only separate models trained on adversarial images from the others, and so have a high rank correlation over
# all models. Here is the correlation within each of the two kinds, with every model as a mark.

# %%
kinds = measures.kinds(learnt, study.on_adversarial(s))
within = measures.within(kinds, "autoattack")
display(tables.save(run, within, "within", "Rank correlation with AutoAttack within each kind.", 2))
figures.against(run, kinds | {"close to chance, left out": left_out}, measured, "autoattack")

# %% [markdown]
# ## Accuracy, robustness, cost
# The most robust method is first. A filled mark means that no other method is at least as good in all three and better in
# one.

# %%
found = measures.front(summary, "autoattack", cost)
figures.front(run, found, "autoattack")

# %% [markdown]
# ## Audit
# Signs that gradients are masked, so that the model only seems robust. A number marked with ! is beyond its threshold.

# %%
checks = audit.audit_each(run, everything, subset(images.test, s.audit_images, 0), eps=s.eps, norm=s.norm, transfer_from=judge)
display(tables.save(run, checks, "audit", "Signs of masked gradients."))
evaluation.flags(table, strong, others, pixel)

# %% [markdown]
# ## Verdicts
# The common claims of the four papers are tested under this protocol. The papers give no number for it, so a gain must be at
# least one point.

# %%
verdicts = claims.judge("alignment", run, summary, len(images.test.classes), audit.signs(run))
run.finish()
claims.show(verdicts)
