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
# *Depth-Aware Adversarial Training for Robust Image Classification*. During adversarial training the class token's attention is
# pulled toward the edges of a depth map, and early on the features toward those of DINOv2. The paper reports on
# ImageNet-100, for a ViT-B/14, 53.7 % under AutoAttack where PGD-AT has 46.7 %, at higher clean accuracy.
#
# Its code cannot be had, and the text contradicts itself in places; the head of `methods/daat.py` says what is chosen. Rendered
# scenes have *exact* depth, so what the paper takes from a depth network can be told apart from the network's own errors, and
# depth from any other edge.

# %% [markdown]
# ## Settings
# A preset says everything; a parameter that is not `None` overrides it (`"null"` sets what may be nothing).

# %% tags=["parameters"]
preset: str = "quick"  # quick · laptop · gpu · paper
data: str = None  # scenes · imagenet100 · cifar10 · stl10 · folder:PATH
seeds: list = None
methods: list = None  # standard · pgd_at · without_align · daat
norm: str = None  # linf (the paper) · l2
train_steps: int = None  # of the attack in training
ramp: list = None  # shares of the steps between which ε rises from zero
weight: float = None  # λ
distance: str = None  # cosine (Equation 2) · jensen_shannon · l1 · earth_mover
align_schedule: str = None  # s(t): constant · warm_up
edges_of: str = None  # adversarial · clean: the image that the depth's edges are told from
operator: str = None  # sobel · sobel_squared · laplacian
oracle: str = None  # exact (scenes) · learned · pretrained
depth_images: int = None  # that a learned oracle learns from
depth_epochs: int = None
depth_weights: str = None  # of a pretrained oracle: a folder, or a name on the hub
depth_kind: str = None  # distance (NYU, KITTI) · disparity (MiDaS)
blocks: list = None  # whose attention is aligned; all when "null"
heads: list = None
rollout: bool = None
layer: str = None  # of a convolutional network
teacher: str = None  # stand_in · dinov2
teacher_weights: str = None  # of DINOv2: timm's file
teacher_epochs: int = None
feature: float = None  # γ₀
controls: list = None  # exact · learned · pretrained · rgb_edges · shuffled · uniform
weights: list = None  # λ of the sweep
one_seed: list = None  # methods, controls or "sweep" of the first seed alone
focus_images: int = None
epsilons: list = None  # factors of ε
cam_epsilons: list = None  # factors of ε at which Grad-CAM is held against PGD-AT's, beside 1
linear_classes: list = None
train_images: int = None
validation_images: int = None
test_images: int = None
image_size: int = None
model: str = None  # vit · vit_conv · vit14 · resnet18 · …
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
crop_fill: str = None
flip: bool = None
selection: str = None  # mean · robust · last: what an epoch is chosen by
device: str = None  # auto · cpu · cuda
devices: int = None  # that share the work, from the command line alone
venue: str = None  # neurips · iclr · icml · cvpr · aaai · wide

# %%
from paperlib import audit, claims, evaluation, figures, studies, training
from paperlib.claims import power
from paperlib.data import as_float, load, subset
from paperlib.figures import source, tables
from paperlib.geometry import depth
from paperlib.methods import daat
from paperlib.studies import daat as study
from paperlib.studies import focus, linear

run = studies.start("daat_imagenet100", globals())
run

# %% [markdown]
# What these images and seeds can tell: for each claim the smallest true difference that is told from zero four times in five.

# %%
power.show(run, study.plan(run.settings))

# %% [markdown]
# ## Data, and what the oracle sees
# Depth is shown as disparity, the inverse of distance. Beside its edges those of the image itself, which are a control below.

# %%
s = run.settings
images = load(s.data, train_images=s.train_images, validation_images=s.validation_images, test_images=s.test_images,
              image_size=s.image_size, seed=0)
size, sample, few = images.train.images.shape[-1], subset(images.test, s.focus_images, 0), subset(images.test, 10, 0)
figures.depth_sheet(run, as_float(few.images), study.depth_of(s, few, size))

# %% [markdown]
# Everything that is aligned and measured below is tried on two images first, so that what does not fit shows now. Then: how well do
# other sources of edges agree with the best one at hand, on the grid that attention has? A map that is the same everywhere
# already agrees to a degree: everything below is to be read beside that.

# %%
grid = study.tried(run, training.build(s, images, 0), few)
seen = study.agreement(run, sample, size, grid)
tables.save(run, seen, "oracles", "Cosine of depth saliency with that of the best oracle at hand.", 3)

# %% [markdown]
# ## The method
# With the depth saliency $G = \mathcal{N}(\mathcal{E}(g(x)))$ of a frozen depth network $g$ (Equation 1) and the attention $A$, both of unit
# mass,
#
# $$\mathcal{L} = \mathcal{L}_{ce}(x + \delta) + \lambda\, s(t) \left(1 - \cos(A(x+\delta), G(x+\delta))\right) + \gamma(t)\,
# \left(1 - \cos(\phi_\theta(x), \phi_T(x))\right),$$
#
# the last term only in the first fifth of the training. The attention is read off the one pass that the loss needs anyway, never in
# the attack's steps.

# %%
source.show(depth.saliency, daat.feature_misalignment, daat.DAAT.loss)

# %% [markdown]
# ## Training
# Four rows of Table 1: standard training, PGD-AT, DAAT without the alignment (features alone), DAAT. Then the controls, each at
# DAAT's cost (but for a depth network, which costs more) with something else in place of $G$, and the sweep over λ. Where there is no
# DINOv2, the teacher is a *stand-in*: the same network, trained plainly on the same images.

# %%
plain = training.train_each(run, study.stand_in(s), images, seeds=[s.seeds[0] + 1000], epochs=s.teacher_epochs)
teacher = study.teacher(s, size, plain)
trained = study.train(run, s, study.methods(s, size, teacher), images)

# %%
controls = study.train(run, s, study.controls(s, size, teacher), images)
swept = study.train(run, s, study.weights(s, size, teacher), images)
everything = trained | controls

# %% [markdown]
# What that cost. B.1 has roughly twice PGD-AT's time; times are this machine's, and mean something only if nothing else ran on it.

# %%
tables.save(run, study.costs(training.histories(run), list(everything)), "cost", "Training time.", 2)

# %% [markdown]
# ## Table 1

# %%
table = evaluation.evaluate_each(run, everything | swept, images.test, study.attacks(s))
some = subset(images.test, s.autoattack_images or s.audit_images, 0)
strong = evaluation.evaluate_each(run, trained | swept, some, study.strong_attacks(s), "strong")
same = evaluation.same_images(table, ["pgd_margin"], images.test, s.autoattack_images)
summary = evaluation.summary(evaluation.combine(table, same, strong))

# %%
rows = summary[summary["method"].isin(list(trained))]
tables.save(run, claims.beside("daat", "table1", rows), "accuracy", "Accuracy (%), beside Table 1.")

# %%
figures.attack_bars(run, rows)

# %% [markdown]
# Each against PGD-AT, image by image and over seeds. A difference that the interval does not tell from zero is called that.

# %%
gaps = evaluation.gaps(summary, "pgd_at", ["clean", "pgd_10", "pgd_margin", "autoattack"])
tables.save(run, gaps, "gaps", "Difference to PGD-AT in points.", 1)

# %% [markdown]
# ## Figure 3: over training, against ε, against λ
# Validation accuracy after each epoch, mean over seeds and their range; PGD-100 on test images; λ = 0 is DAAT without alignment.

# %%
figures.panels(run, study.epochs(training.histories(run), list(trained)), "epochs", x="epoch", label="validation accuracy (%)")

# %%
curve = evaluation.sweep(run, trained, subset(images.test, s.sweep_images, 0), study.sweep_attack(s), s.epsilons)
points = study.sweep_points(s, curve)
figures.panels(run, points, "epsilons", x=points.columns[1])

# %%
figures.panels(run, study.weight_points(s, summary), "weights", x="λ")

# %% [markdown]
# ## Figure 1 (a): does an attack on the classifier change the depth that a network sees?
# The mean change of disparity over its spread, under the attack and under two kinds of noise that know nothing of the classifier: the
# perturbation's own values at shuffled places, and random signs of the same size in the attack's norm. The exact oracle cannot
# react, so a learned one stands in for it.

# %%
attack, moving = study.attacks(s)["pgd_10"], study.oracle(s, size, study.moving(s))
moved = focus.by_image(run, trained, sample, focus.depth_moved, attack=attack, oracle=moving)
depths = evaluation.summary(focus.renamed(moved, "depth_moved"))
tables.save(run, evaluation.wide(depths), "depth_moved", "Change of disparity in percent of its spread.")

# %%
pairs = {name: focus.first_depths(run, trained[name], few, attack=attack, oracle=moving) for name in trained}
figures.changes(run, "depth_changes", as_float(few.images)[:4], pairs, "disparity")

# %% [markdown]
# ## Figures 1 (b), 2 and 4: Grad-CAM under attack
# Of the true class before its ReLU, clean and adversarial, for the first seed. Contours are where the change is large.

# %%
layer = study.cam_layer(s, next(iter(trained["daat"].values())))
cams = {name: focus.first_cams(run, trained[name], few, attack=attack, layer=layer) for name in ("pgd_at", "daat")}
figures.changes(run, "cams", as_float(few.images)[:4], cams, "Grad-CAM")

# %% [markdown]
# The same as numbers over test images: the correlation of clean and adversarial map, half their L1 distance, and, where the
# object's mask is known, the share of the positive evidence on it.

# %%
stability = focus.by_image(run, everything, sample, focus.cam_stability, attack=attack, layer=layer)
tables.save(run, evaluation.wide(evaluation.summary(stability)), "cams", "Grad-CAM, clean and under attack (×100).")

# %% [markdown]
# And at other ε, as Figures 2 and 4 show it.

# %%
pair = {name: trained[name] for name in ("pgd_at", "daat")}
further = focus.cams_by_eps(run, pair, sample, attack=attack, layer=layer, factors=s.cam_epsilons)
tables.save(run, evaluation.wide(evaluation.summary(further)), "cams_by_eps", "Correlation of Grad-CAM by factor of ε (×100).") if len(further) else None

# %% [markdown]
# ## Does the attention follow the edges?
# The cosine of each block's attention with $G$, clean and under attack, beside that of uniform attention.

# %%
found = focus.by_image(run, everything, sample, focus.edge_cosines, attack=attack, target=study.target(s, size),
                       attentions=study.attentions(s, next(iter(trained["daat"].values()))))
figures.panels(run, focus.points(evaluation.summary(found)), "attention", x="block", label="cosine")

# %% [markdown]
# ## Is it depth, and does the gradient leave the flat regions?
# The controls: accuracy; the cosine with the edges of depth; the share of $\|\nabla_x L\|_1$ on the tenth of the pixels with the
# strongest depth edges (10 % where it is spread evenly), beside that on as many pixels with the image's own strongest edges, which needs
# no depth; and the rise of the loss that an attack can have to first order, ε times the gradient's dual norm.

# %%
gradients = focus.by_image(run, everything, sample, focus.gradient_place, oracle=study.oracle(s, size),
                           operator=s.operator, eps=s.eps, norm=s.norm)

# %%
edge_rows = study.edge_rows(found)
measures = evaluation.summary(evaluation.combine(edge_rows, gradients, stability))
kept = summary[summary["method"].isin(list(everything)) & (summary["measure"] != "autoattack")]
beside = evaluation.wide(evaluation.combine(kept, measures[~measures["measure"].str.startswith("cam")]))
tables.save(run, beside, "controls", "DAAT and what could stand in for depth (%; cosines and nats × 100).")

# %%
against = evaluation.gaps(summary, "daat", ["clean", "pgd_10", "pgd_margin"])
tables.save(run, against, "against_daat", "Difference to DAAT in points.", 1)

# %% [markdown]
# ## Proposition 1, tried
# A linear classifier of two classes with weights on the quarter of the pixels that has the most depth edges, against one with all, one
# off the edges and one on as many random pixels; by logistic regression, and by the same under the worst perturbation, which has a closed
# form. The proposition compares the bound Δ = ε‖w‖₁ at the same margin γ; nothing there makes the margins equal, so Δ/γ stands
# beside them. Its smallest value over all classifiers that tell a few images of both classes apart is a linear programme. A classifier on
# edges is one of those that may use all pixels: the smallest bound on all pixels can never be the larger one.

# %%
source.show(linear.fit)

# %%
proposition = linear.experiment(images.train, images.test, study.oracle(s, size), *s.linear_classes, eps=s.eps_linf,
                                operator=s.operator)
tables.save(run, proposition.drop(columns="each"), "proposition", "A linear classifier on some of the pixels.", 2)

# %%
bounds = linear.smallest_bounds(images.train, study.oracle(s, size), *s.linear_classes, eps=s.eps_linf, operator=s.operator)
tables.save(run, bounds, "bounds", "The smallest Δ/γ with weights on some of the pixels.", 3)

# %% [markdown]
# ## The audit

# %%
judge = training.judge(run, images)
checks = audit.audit_each(run, trained, subset(images.test, s.audit_images, 0), eps=s.eps, norm=s.norm, transfer_from=judge)
tables.save(run, checks, "audit", "Signs of masked gradients.")

# %%
evaluation.flags(table, strong, curve)

# %% [markdown]
# ## Verdicts
# *Reproduced*: the 95 % interval of the measured difference, image by image and over seeds, is above zero, and the difference at
# least half of the paper's. *Direction only*: it is real but smaller. *Not reproduced*: the interval leaves out half of what the paper
# claims. *Not tested here*: the run lacks a model or has it at chance, or its interval holds both zero and the claim.

# %%
early = study.early_rows(training.histories(run), list(trained), len(images.validation))
more = [evaluation.summary(part) for part in (study.budget_rows(s, curve), early, further) if len(part)]
measured = evaluation.combine(summary, measures, depths, *more, linear.rows(proposition), linear.bound_rows(bounds))
verdicts = claims.judge("daat", run, measured, len(images.test.classes), audit.signs(run), excluded=linear.untold(proposition))
run.finish()
claims.show(verdicts)
