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
# Four papers say that alignment makes a classifier robust: of gradients, outputs or attention with something meaningful.
# Each has its own data, attacks and measures. Here their defences and baselines are trained on the same data, with the same
# network, schedule and attack. They are trained once more with the same *compute*. Every model meets every attack, and
# every alignment is measured on every model, whoever it was trained for.
#
# Some defences are simplified. DAAT is without its feature alignment, and a convolutional network's attention is the
# activations of one layer. RIGD distils the gradients of this run's own PGD-AT. Of RAAT# and its baseline WA, the framework
# is the moving average of the weights alone.
#
# Then the question: **which measure of alignment tells how much accuracy AutoAttack leaves? Does any tell more than the
# size of the gradient already does?**

# %% [markdown]
# ## Settings
# Each knob below shows its value in the preset `quick`. Under another preset, a knob left at that value is as that preset
# says. Any other setting goes by name into `settings`, say `settings = {"momentum": 0.8}`. What stands there counts under
# every preset, also quick's own value. So does what papermill passes with `-p`. In a knob, `None` is as the preset says.
# To set nothing where that is allowed, write the text `"null"`. Unknown names are refused, with a list of those allowed.
#
# `combinations`, which no paper tried, map a name to a base and what is added to it. Add your own:
# `combinations = {"pag_raat": {"base": "raat", "add": {"class_mean": 0.1}}}`.

# %% tags=["parameters"]
preset: str = "quick"  # quick · laptop · gpu · paper
data: str = "scenes4"  # scenes4 · scenes · cifar10 · cifar100 · stl10 · tiny_imagenet · folder:PATH
seeds: list = [0]  # one training with each defence for each seed
norm: str = "linf"  # linf · l2, of the attacks
defences: list = ["standard", "gradient_penalty", "class_mean", "first", "pgd_at", "raat", "daat"]  # all: preset paper
combinations: dict = {}  # name: base, and weights of the terms added, say {"pag_raat": {"base": "raat", "add": {"class_mean": 0.1}}}
equal_compute: str = None  # the defence whose compute all others get once more; "null": none
eta: float = 0.1  # η of RAAT
train_steps: int = 3  # of the attack in training
epochs: int = 10  # of each training
train_images: int = 1200  # "null": all
eps_linf: float = 4 / 255  # ε of the linf attacks, images in [0,1]
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
# ## What each defence costs
# The number of multiplications of a training step over those of plain training, counted and not timed. It includes
# convolutions and matrix products of all passes, also the attack's and those of second derivatives. DICAR takes only images
# that are right; counted is the most that it can be. RIGD is counted without the training of its teacher, here, at equal
# compute and on the front.
#
# "equal" is the number of epochs in which each takes as many as the reference, rounded. Beside it is what that comes to.

# %%
study.check(s, network, sample)
counted = study.methods(s, images.train, network, run.device, training.build(s, images, 0))  # with any teacher
cost = measures.costs(counted, network, images, run.device)
equal = measures.equal_epochs(cost, s.equal_compute, s.epochs) if s.equal_compute else None
tables.save(run, measures.cost_table(cost, s.epochs, equal), "cost", "Cost of a step in plain steps, and epochs.", 1)

# %% [markdown]
# ## Combinations
# A combination is one method's objective with the own terms of others on top,
#
# $$\mathcal{L} = \mathcal{L}_{base} + \sum_i w_i \, \mathcal{L}_i.$$

# %%
source.show(combined.Combined.loss)

# %% [markdown]
# One batch goes through the loss with its terms, on the untrained network, at the middle of the training. Step into the
# call to follow it.

# %%
start, first = training.build(s, images, s.seeds[0]).to(run.device), [*s.combinations, *s.defences][0]
batch, step = training.one_batch(run, images, averaged=start)
terms = counted[first].loss(start, batch, step)
{name: term.item() for name, term in terms.items()}

# %% [markdown]
# ## Training
# What another notebook trained by the same recipe is taken from there. PGD-AT comes first: its first seed is the teacher of
# every seed of RIGD.

# %%
teachers = study.train(run, {"pgd_at": counted["pgd_at"]}, images)["pgd_at"]
methods = study.methods(s, images.train, network, run.device, teachers[s.seeds[0]])
trained = study.train(run, methods, images)
judge = training.judge(run, images)
longer = study.train(run, methods, images, equal) if equal else {}
everything = trained | longer

# %% [markdown]
# ## The matrix
# Accuracy under every attack. Square, transfer, noise, AutoAttack, PGD-100, the other norm and one pixel run on fewer
# images. The last table has the differences to PGD-AT, image by image and over seeds.

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
# How far is the nearest image that fools a model, by the attacks that look for it? The table has the median L2 distance of
# the images that a model has right. The ratio to PGD-AT's is over those that both have right.

# %%
nearest = subset(images.test, s.minimum_images, 0)
distances = evaluation.distances_each(run, everything, nearest, l2_attacks(s.minimum_steps))
tables.save(run, distance_table(distances, "pgd_at"), "distances", "L2 distance to the boundary.", 2)

# %% [markdown]
# ## Every alignment of every model
# All in evaluation mode, as an attack meets the model, and GFA's cosine of cross-entropy for all. The sign of each is such
# that more should be more robust.

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
# ## Which measure tells?
# Spearman's rank correlation over models with accuracy under AutoAttack, and under PGD on the margin, which has more
# images. Then what is left of it beside the size of the gradient, which is what alignment may come down to. The intervals
# resample methods. Models that have hardly learnt are left out, which at quick sizes may leave none. An attack takes
# little from them, whatever their gradients are like.

# %%
learnt = measures.learnt(by_model, table, len(images.test.classes))
left_out, tells = by_model[~by_model.index.isin(learnt.index)], measures.predictors(learnt, "autoattack")
display(tables.save(run, left_out[["clean", "autoattack"]], "left_out", "Accuracy of what has hardly learnt.", 2))
display(tables.save(run, tells, "predictors", "Rank correlation with accuracy under AutoAttack.", 2))
display(figures.correlations(run, tells, "autoattack"))
tables.save(run, measures.predictors(learnt, "pgd_margin"), "predictors_margin", "The same with PGD-20 on the margin.", 2)

# %% [markdown]
# A measure may only tell who trained on adversarial images from who did not. Over all models it then has a high rank
# correlation. So here is the same within each kind, with every model as a mark.

# %%
kinds = measures.kinds(learnt, study.on_adversarial(s))
within = measures.within(kinds, "autoattack")
display(tables.save(run, within, "within", "Rank correlation with AutoAttack within each kind.", 2))
figures.against(run, kinds | {"close to chance, left out": left_out}, measured, "autoattack")

# %% [markdown]
# ## Accuracy, robustness, cost
# The most robust first. A filled mark: no other is at least as good in all three, and better in one.

# %%
found = measures.front(summary, "autoattack", cost)
figures.front(run, found, "autoattack")

# %% [markdown]
# ## Audit
# Signs that gradients are masked rather than the model robust. A figure marked with ! is beyond its threshold.

# %%
checks = audit.audit_each(run, everything, subset(images.test, s.audit_images, 0), eps=s.eps, norm=s.norm, transfer_from=judge)
display(tables.save(run, checks, "audit", "Signs of masked gradients."))
evaluation.flags(table, strong, others, pixel)

# %% [markdown]
# ## Verdicts
# What the four papers have in common is held against this protocol. No number is claimed for it, so a gain must be a point
# at least.

# %%
verdicts = claims.judge("alignment", run, summary, len(images.test.classes), audit.signs(run))
run.finish()
claims.show(verdicts)
