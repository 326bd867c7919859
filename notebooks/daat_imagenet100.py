# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # DAAT: does attention on the edges of depth make a vision transformer robust, and is it depth that does it?
#
# *Depth-Aware Adversarial Training for Robust Image Classification*. During adversarial training the class token's
# attention is pulled toward the edges of a depth map. At first, the features are also pulled toward those of DINOv2. For a
# ViT-B/14 on ImageNet-100 the paper reports 53.7 % under AutoAttack, against 46.7 % for PGD-AT, at higher clean accuracy.
#
# The paper's code is not available, and its text contradicts itself in places. The docstring of `methods/daat.py` lists the
# choices made here. Rendered scenes have *exact* depth. So the effect of depth can be separated from the errors of a depth
# network, and from the effect of any other edges.

# %% [markdown]
# ## Settings
# Each knob below shows its value in the preset `quick`. Under another preset, an unchanged knob takes that preset's value.
# Every other setting can be given by name in `settings`, for example `settings = {"momentum": 0.8}`. Values in `settings`,
# and values that papermill passes with `-p`, override every preset, even if they equal quick's. A knob at `None` takes the
# preset's value. To set an optional setting to nothing, write the text `"null"`. Unknown names are refused with a list of
# the allowed names.

# %% tags=["parameters"]
preset: str = "quick"  # quick · laptop · gpu · paper
data: str = "scenes4"  # scenes4 · scenes · imagenet100 · cifar10 · stl10 · folder:PATH
seeds: list = [0]  # one training with each method per seed
methods: list = ["standard", "pgd_at", "without_align", "daat"]  # rows of Table 1
train_steps: int = 2  # steps of the training attack
weight: float = 0.1  # λ of the alignment
distance: str = "cosine"  # cosine (Equation 2) · jensen_shannon · l1 · earth_mover
operator: str = "sobel"  # edge operator: sobel · sobel_squared · laplacian
oracle: str = "exact"  # source of depth: exact (scenes only) · learned · pretrained
controls: list = ["shuffled"]  # sources that replace depth: exact · learned · pretrained · rgb_edges · shuffled · uniform
epochs: int = 12  # number of epochs of each training
train_images: int = 1200  # number of training images; "null": all
eps_linf: float = 4 / 255  # ε of the L∞ attacks, for images in [0,1]
settings: dict = {}  # any other setting by name

# %%
from IPython.display import display

from paperlib import audit, claims, evaluation, figures, models, studies, training
from paperlib.claims import power
from paperlib.data import as_float, load, subset
from paperlib.figures import source, tables
from paperlib.geometry import depth
from paperlib.methods import daat
from paperlib.studies import daat as study
from paperlib.studies import focus, linear

run = studies.start("daat_imagenet100", globals())
display(run)
power.show(run, study.plan(run.settings))

# %% [markdown]
# ## Data, network, and the oracle's output
# Depth is shown as disparity, the inverse of distance. Beside its edges are the edges of the image itself, a control below.

# %%
s = run.settings
images = load(s.data, train_images=s.train_images, validation_images=s.validation_images, test_images=s.test_images,
              image_size=s.image_size, seed=0)
size, sample, few = images.train.images.shape[-1], subset(images.test, s.focus_images, 0), subset(images.test, 10, 0)
display(figures.depth_sheet(run, as_float(few.images), study.depth_of(s, few, size)))
models.summary(training.build(s, images, s.seeds[0]), images.train.images.shape[1:])

# %% [markdown]
# Everything that is aligned and measured below is first tested on a few images, so that errors appear before the training.
#
# How well do other sources of edges agree with the best available oracle, on the grid of the attention? Even a uniform map
# agrees to some degree, and all cosines below should be compared with that of the uniform map.

# %%
grid = study.tried(run, training.build(s, images, 0), few)
seen = study.agreement(run, sample, size, grid)
tables.save(run, seen, "oracles", "Cosine of depth saliency with that of the best oracle at hand.", 3)

# %% [markdown]
# ## The method
# The depth saliency is $G = \mathcal{N}(\mathcal{E}(g(x)))$, with $g$ a frozen depth network (Equation 1). It and the
# attention $A$ have unit mass. The loss is
#
# $$\mathcal{L} = \mathcal{L}_{ce}(x + \delta) + \lambda\, s(t) \left(1 - \cos(A(x+\delta), G(x+\delta))\right) + \gamma(t)\,
# \left(1 - \cos(\phi_\theta(x), \phi_T(x))\right),$$
#
# where the last term is only used in the first fifth of the training. The attention comes from the forward pass of the
# cross-entropy, never from the attack's steps. Without DINOv2, the teacher of the last term is a *stand-in*: the same network,
# trained plainly on the same images. Its seed differs from those of the methods and of the audit's judge.

# %%
source.show(depth.saliency, daat.feature_misalignment, daat.DAAT.loss)

# %% [markdown]
# The next cell passes one batch through the loss and its terms, on the untrained network, as in the middle of the training.
# Step into the call to follow it. There the feature term is over.

# %%
plain = training.train_each(run, study.stand_in(s), images, seeds=[s.seeds[0] + 2000], epochs=s.teacher_epochs)
frozen = study.teacher(s, size, plain)
batch, step = training.one_batch(run, images)
method = study.methods(s, size, frozen)["daat" if "daat" in s.methods else s.methods[0]]
terms = method.loss(training.build(s, images, s.seeds[0]).to(run.device), batch, step)
{name: term.item() for name, term in terms.items()}

# %% [markdown]
# ## Part 1: accuracy
# ### Training
# The methods are four rows of Table 1: standard training, PGD-AT, DAAT without the alignment (features only), and DAAT. The
# controls and the sweep over λ follow. Each control replaces $G$ by another map and costs as much as DAAT; a depth network
# costs more.
#
# The table has the training times; B.1 states about twice PGD-AT's time for DAAT. Times are comparable only if nothing else
# ran on this machine.

# %%
trained = study.train(run, s, study.methods(s, size, frozen), images)
replaced = study.train(run, s, study.controls(s, size, frozen), images)
swept = study.train(run, s, study.weights(s, size, frozen), images)
everything = trained | replaced
tables.save(run, study.costs(training.histories(run, everything)), "cost", "Training time.", 2)

# %% [markdown]
# ### Table 1
# The last table has the differences to PGD-AT, paired by image and over seeds. It marks differences whose interval contains
# zero.

# %%
table = evaluation.evaluate_each(run, everything | swept, images.test, study.attacks(s))
some = subset(images.test, s.autoattack_images or s.audit_images, 0)
strong = evaluation.evaluate_each(run, trained | swept, some, study.strong_attacks(s), "strong")
same = evaluation.same_images(table, ["pgd_margin"], images.test, s.autoattack_images)
summary = evaluation.summary(evaluation.combine(table, same, strong))
gaps = evaluation.gaps(summary, "pgd_at", ["clean", "pgd_10", "pgd_margin", "autoattack"])

# %%
rows = summary[summary["method"].isin(list(trained))]
display(tables.save(run, claims.beside("daat", "table1", rows), "accuracy", "Accuracy (%), beside Table 1."))
display(figures.accuracies(run, rows))
tables.save(run, gaps, "gaps", "Difference to PGD-AT in points.", 1)

# %% [markdown]
# ### Figure 3: over training, against ε, against λ
# The first figure shows validation accuracy after each epoch, as mean and range over seeds. The second shows PGD-100 on test
# images. In the third, λ = 0 is DAAT without alignment.

# %%
curve = evaluation.sweep(run, trained, subset(images.test, s.sweep_images, 0), study.sweep_attack(s), s.epsilons)
points = evaluation.against_eps(curve, s.norm)
display(figures.training_curves(run, training.histories(run, trained), ["clean_accuracy", "robust_accuracy"]))
display(figures.panels(run, points, "epsilons", x=points.columns[2]))
figures.panels(run, study.weight_points(s, summary), "weights", x="λ")

# %% [markdown]
# ## Part 2: depth and Grad-CAM under attack
# ### Figure 1 (a): does an attack on the classifier change the depth that a network sees?
# The table has the mean change of disparity over its spread, under the attack and under two kinds of noise that do not depend
# on the classifier. One permutes the perturbation over the pixels. The other has random signs and the same size in the
# attack's norm. The exact oracle cannot react, so a learned oracle replaces it.

# %%
attack, moving = study.attacks(s)["pgd_10"], study.oracle(s, size, study.moving(s))
moved = focus.by_image(run, trained, sample, focus.depth_moved, attack=attack, oracle=moving)
depths = evaluation.summary(focus.renamed(moved, "depth_moved"))
pairs = {name: focus.first_depths(run, trained[name], few, attack=attack, oracle=moving) for name in trained}
display(tables.save(run, evaluation.wide(depths), "depth_moved", "Change of disparity in percent of its spread."))
figures.changes(run, "depth_changes", as_float(few.images)[:6], pairs, "disparity")

# %% [markdown]
# ### Figures 1 (b), 2 and 4: Grad-CAM under attack
# The figure shows Grad-CAM of the true class before its ReLU, clean and adversarial, for the first seed. The last row of each
# method is the difference, on one scale.
#
# The tables have numbers over test images. The first has the correlation of the clean and the adversarial map, half their L1
# distance and, if the object's mask is known, the share of the positive evidence on it. The second has the correlation at
# other ε, as in Figures 2 and 4.

# %%
cam_layer = study.cam_layer(s, next(iter(trained["daat"].values())))
pair = {name: trained[name] for name in ("pgd_at", "daat")}
cams = {name: focus.first_cams(run, pair[name], few, attack=attack, layer=cam_layer) for name in pair}
stability = focus.by_image(run, everything, sample, focus.cam_stability, attack=attack, layer=cam_layer)
further = focus.cams_by_eps(run, pair, sample, attack=attack, layer=cam_layer, factors=s.cam_epsilons)

# %%
display(figures.changes(run, "cams", as_float(few.images)[:6], cams, "Grad-CAM"))
display(tables.save(run, evaluation.wide(evaluation.summary(stability)), "cams", "Grad-CAM, clean and under attack (×100)."))
by_eps = evaluation.wide(evaluation.summary(further)) if len(further) else None
tables.save(run, by_eps, "cams_by_eps", "Correlation of Grad-CAM by factor of ε (×100).") if len(further) else "no other ε"

# %% [markdown]
# ## Part 3: is it depth?
# ### Does the attention follow the edges?
# The cosine of each block's attention with $G$, clean and under attack, beside that of uniform attention.

# %%
found = focus.by_image(run, everything, sample, focus.edge_cosines, attack=attack, target=study.target(s, size),
                       attentions=study.attentions(s, next(iter(trained["daat"].values()))))
display(figures.panels(run, focus.points(evaluation.summary(found)), "attention", x="block", label="cosine"))
gradients = focus.by_image(run, everything, sample, focus.gradient_place, oracle=study.oracle(s, size),
                           operator=s.operator, eps=s.eps, norm=s.norm)

# %% [markdown]
# ### Is it depth, and does the gradient leave the flat regions?
# The table of controls has four measures: accuracy; the cosine with the edges of depth; the share of $\|\nabla_x L\|_1$ on
# the tenth of the pixels with the strongest depth edges, where 10 % is an even spread; and ε times the gradient's dual norm,
# the first-order rise of the loss under attack. Beside the share on depth edges is the share on the tenth of the pixels with
# the image's own strongest edges, which needs no depth.

# %%
measures = evaluation.summary(evaluation.combine(study.edge_rows(found), gradients, stability))
kept = summary[summary["method"].isin(list(everything)) & (summary["measure"] != "autoattack")]
beside = evaluation.wide(evaluation.combine(kept, measures[~measures["measure"].str.startswith("cam")]))
against = evaluation.gaps(summary, "daat", ["clean", "pgd_10", "pgd_margin"])
display(tables.save(run, beside, "controls", "DAAT and what could stand in for depth (%; cosines and nats × 100)."))
tables.save(run, against, "against_daat", "Difference to DAAT in points.", 1)

# %% [markdown]
# ### Proposition 1 as an experiment
# A linear classifier of two classes has weights on the quarter of the pixels with the most depth edges. It is compared with
# one on all pixels, one off the edges, and one on as many random pixels. Each is trained by logistic regression, and again
# under the worst perturbation, which has a closed form.
#
# The proposition compares the bound Δ = ε‖w‖₁ at the same margin γ. Training does not make the margins equal, so the table
# has Δ/γ. Its smallest value over all classifiers that separate a few images of both classes is a linear programme. A
# classifier on edges is also a classifier on all pixels. So the smallest bound on all pixels is never larger.

# %%
source.show(linear.fit)

# %%
proposition = linear.experiment(images.train, images.test, study.oracle(s, size), *s.linear_classes, eps=s.eps_linf,
                                operator=s.operator)
bounds = linear.smallest_bounds(images.train, study.oracle(s, size), *s.linear_classes, eps=s.eps_linf, operator=s.operator)
linear_rows = proposition.drop(columns="each")
display(tables.save(run, linear_rows, "proposition", "A linear classifier on some of the pixels.", 2))
tables.save(run, bounds, "bounds", "The smallest Δ/γ with weights on some of the pixels.", 3)

# %% [markdown]
# ## Part 4: audit and verdicts
# Signs that gradients are masked, so that the model only seems robust. A number marked with ! is beyond its threshold.

# %%
judge, checked = training.judge(run, images), subset(images.test, s.audit_images, 0)
checks = audit.audit_each(run, trained, checked, eps=s.eps, norm=s.norm, transfer_from=judge)
display(tables.save(run, checks, "audit", "Signs of masked gradients."))
evaluation.flags(table, strong, curve)

# %% [markdown]
# ### Verdicts
# *Reproduced*: the 95 % interval of the measured difference, paired by image, is above zero, and the difference is at least
# half of the paper's. *Direction only*: the interval is above zero, but the difference is smaller. *Not reproduced*: the
# interval reaches zero or is below it, and it ends below half of the paper's difference. *Not tested here*: the interval
# contains both zero and that half, a model is missing or at chance, or the paper's own table shows no gain. Without a number
# in the paper, one point replaces that half. The caption lists where the run differs from the paper.

# %%
early = study.early_rows(training.histories(run, trained), len(images.validation))
more = [evaluation.summary(part) for part in (study.budget_rows(s, curve), early, further) if len(part)]
measured = evaluation.combine(summary, measures, depths, *more, linear.rows(proposition), linear.bound_rows(bounds))
verdicts = claims.judge("daat", run, measured, len(images.test.classes), audit.signs(run), excluded=linear.untold(proposition))
run.finish()
claims.show(verdicts)
