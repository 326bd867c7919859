# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # GFA: does a gradient along the features make a network robust, and is that robustness real?
#
# *DeepDefense: Layer-Wise Gradient-Feature Alignment for Building Robust Neural Networks* (arXiv 2511.13749). The loss
# gradient at a layer's input is trained to point along that input. A perturbation then has a *radial* part, along the
# image as the first layer sees it (from grey, where images are centred). The rest is *tangential*, and there the aligned
# loss should be flat. Over adversarial training the paper reports up to 15.2 points more under APGD, and 24.7 under FGSM.
# Under DeepFool and EAD it reports perturbations 20 to 30 times larger.
#
# The full text and the code are not available. Whatever the abstract and summaries leave open is a setting here. This
# notebook trains the method and shows the landscape of the loss. It tests the decomposition, which the paper does not, and
# tests whether the robustness is real.

# %% [markdown]
# ## Settings
# Each knob below shows its value in the preset `quick`. Under another preset, an unchanged knob takes that preset's value.
# Every other setting can be given by name in `settings`, for example `settings = {"momentum": 0.8}`. Values in `settings`,
# and values that papermill passes with `-p`, override every preset, even if they equal quick's. A knob at `None` takes the
# preset's value. To set an optional setting to nothing, write the text `"null"`. Unknown names are refused with a list of
# the allowed names.

# %% tags=["parameters"]
preset: str = "quick"  # quick · laptop · gpu · paper
data: str = "scenes4"  # scenes4 · scenes · cifar10 · cifar100 · tiny_imagenet · stl10 · fashion_mnist · folder:PATH
seeds: list = [0]  # one training with each method per seed
methods: list = ["standard", "pgd_at", "first", "deep"]  # also gradient_penalty
task: str = "mse"  # task loss: mse (the paper) · mse_softmax · ce
betas: dict = {"first": [0.2], "deep": [0.06, 0.06, 0.06]}  # β of each layer: first has one, deep three
sweep: list = []  # factors on β for FIRST and DEEP
model: str = "cnn"  # mlp · cnn · vit · small_cnn · resnet18 · …
epochs: int = 10  # number of epochs of each training
train_images: int = 1200  # number of training images; "null": all
test_images: int = 240  # number of test images; "null": all
eps_linf: float = 4 / 255  # ε of the L∞ attacks, for images in [0,1]
autoattack_images: int = 0  # test images for AutoAttack; 0: do not run it
settings: dict = {}  # any other setting by name

# %%
from IPython.display import display

from paperlib import audit, claims, evaluation, figures, models, studies, training
from paperlib.attacks.minimum_norm import l2_attacks, pixel_attacks
from paperlib.claims import power
from paperlib.data import load, subset
from paperlib.evaluation import trial
from paperlib.evaluation.intervals import distance_table
from paperlib.figures import source, tables
from paperlib.methods import baselines, gfa
from paperlib.studies import gfa as study
from paperlib.studies import landscape

run = studies.start("gfa_landscape", globals())
display(run)
power.show(run, study.plan(run.settings))

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
# For the input $h^{(l)}$ of layer $l$,
#
# $$\mathcal{L}_{total} = \alpha\, \mathcal{L} + \sum_l \beta_l \left(1 - \frac{\langle \nabla_{h^{(l)}} \mathcal{L},
# h^{(l)} \rangle}{\|\nabla_{h^{(l)}} \mathcal{L}\|\, \|h^{(l)}\|}\right),$$
#
# with $\mathcal{L}$ the squared error against one-hot labels. FIRST aligns the first layer, DEEP the first three.
#
# The summary prints "$\alpha \mathcal{L} - \beta\,$GFA". With GFA the cosine, that is the same. With GFA the penalty, it
# would turn the gradients away. Further down, the summary has "$1 - \cos$" itself, which is minimised here. The module's
# docstring lists the other choices.
#
# The next cell passes one batch through the loss and its terms, on the untrained network, as in the middle of the training.
# Step into the call to follow it. β rises over the training (`ramp`), so here it is smaller than at the end.

# %%
display(source.show(gfa.aligned, gfa.GFA.loss, baselines.GradientPenalty.loss))
names, attack = study.layers(s, images), study.selection_attack(s)
batch, step = training.one_batch(run, images)
terms = study.methods(s, names)["first" if "first" in s.methods else s.methods[0]].loss(network, batch, step)
{name: term.item() for name, term in terms.items()}

# %% [markdown]
# ## Part 1: training and alignment
# ### FIRST and DEEP on a three-layer MLP
# The summary proposes this sanity check. Does the alignment generalise to images outside the training set?

# %%
flat = s.model_copy(update=s.mlp)
points = images if s.mlp_data is None else load(s.mlp_data, train_images=s.train_images, test_images=s.test_images,
                                                validation_images=s.validation_images, seed=0)
mlp_layers = study.layers(flat, points) if s.mlp else []
small = training.train_each(run, study.mlp_methods(s, mlp_layers), points, study.selection_attack(s), **s.mlp)
mlp_scores = study.others_each(run, {s.task: small}, points.test) if small else None

# %%
parts = {"train images": subset(points.train, s.landscape_images, 0), "test images": subset(points.test, s.landscape_images, 0)}
curves = study.cosine_curves(training.histories(run, small))
display(figures.panels(run, curves, "mlp_cosines", x="epoch", label="mean cosine over the epoch"))
display(tables.save(run, study.cosine_table(run, small, parts, mlp_layers), "mlp", "MLP: mean cosine at each layer's input.", 3))
tables.save(run, claims.beside("gfa", "reported", evaluation.summary(mlp_scores)), "mlp_accuracy",
              "MLP: accuracy (%).") if small else "no MLP at this preset"

# %% [markdown]
# ### Training
# Every method starts from the same initial weights and uses the same task loss. The gradient penalty makes the gradient small
# in any direction, so an effect that it has as well is not due to the alignment.
#
# Does the alignment generalise? The table has the cosine at each layer's input, in evaluation mode, as under attack.

# %%
trained = training.train_each(run, study.methods(s, names), images, attack)
judge = training.judge(run, images, baselines.Standard(s.task))
display(figures.training_curves(run, training.histories(run, trained), ["clean_accuracy", "robust_accuracy", "total"]))
parts = {"train images": subset(images.train, s.landscape_images, 0), "test images": subset(images.test, s.landscape_images, 0)}
cosines = study.cosine_table(run, trained, parts, names)
tables.save(run, cosines, "cosines", "Mean cosine of loss gradient and layer input.", 3)

# %% [markdown]
# ### What is a high cosine worth?
# The *twin* is the standard model with a multiple of the mean square of the first layer's input added to every output.
# Decisions, margins, cross-entropy and the distance to the boundary stay the same, but the squared error now rises along the
# image. So a cosine near one does not imply robustness, and an attack on the squared error is misled.

# %%
twins, sample = {"standard": trained["standard"], "twin": study.twins(trained["standard"], names[0])}, parts["test images"]
same = evaluation.evaluate_each(run, twins, sample, study.attacks(s, s.task), "twin")
beside = claims.beside("gfa", "reported", evaluation.summary(same))
beside["cosine", "here"] = study.first_cosines(run, {s.task: twins}, sample)
tables.save(run, beside, "twin", "A twin of the same decisions: accuracy (%) and cosine.", 2)

# %% [markdown]
# ## Part 2: the landscape
# The first figure shows contours of the task loss over the plane of the radial and the adversarial tangential direction, as
# means over test images, with the same colours in every panel. The second figure shows the loss along each direction.

# %%
display(figures.landscapes(run, landscape.surfaces(run, trained, sample), s.landscape_reach))
figures.panels(run, landscape.profiles(run, trained, sample), "profiles", x="distance (L2)", label="change of the task loss")

# %% [markdown]
# ### Radial or tangential?
# The paper's theory uses this decomposition but never tests it. PGD in L2 (margin loss) must stay within an angle of the
# radial line, or of the tangential plane; 90 degrees is no constraint. A clamp to [0,1] would change the angle, so points
# may leave [0,1].
#
# The second figure shows how a perturbation grows through the layers: ‖Δh‖/‖h‖ at the input of each layer, under PGD.

# %%
cone = evaluation.evaluate_each(run, trained, sample, study.cones(s), "cones", box=None)
display(figures.panels(run, study.cone_points(evaluation.summary(cone)), "cones", x="angle (degrees)", label="accuracy (%)"))
figures.panels(run, landscape.amplification(run, trained, sample, attack), "amplification", x="layer", label="‖Δh‖ / ‖h‖")

# %% [markdown]
# ## Part 3: accuracy
# ### Accuracy under every attack
# FGSM and PGD use cross-entropy, as in libraries. PGD also uses the training loss and the margin. All other attacks run on
# fewer images. DeepFool, EAD, C&W and DDN succeed here if they stay within the L2 ball of `eps_l2`.
#
# The last table has the distance to the boundary by minimum-norm attacks in L2: the median over the images that a model
# classifies correctly, where a failed attack counts as infinitely far. The ratio to the standard model's distance is over
# the images that both classify correctly, with a bootstrap interval. DeepFool overstates the distance of robust models; DDN
# is stronger.

# %%
table = evaluation.evaluate_each(run, trained, images.test, study.attacks(s, s.task))
some = subset(images.test, s.autoattack_images or s.audit_images, 0)
strong = evaluation.evaluate_each(run, trained, some, study.strong_attacks(s, judge), "strong")
distances = evaluation.distances_each(run, trained, subset(images.test, s.minimum_images, 0), l2_attacks(s.minimum_steps))
pixel = evaluation.evaluate_each(run, trained, subset(images.test, s.pixel_images, 0), pixel_attacks(s.pixel_generations), "pixel")
same = evaluation.same_images(table, ["pgd_margin"], images.test, len(some))

# %%
summary = evaluation.summary(evaluation.combine(table, same, strong, study.distance_rows(distances, s.eps_l2), pixel))
beside = claims.beside("gfa", "reported", summary)
display(tables.save(run, beside, "accuracy", "Accuracy (%); the paper gives differences alone."))
display(figures.accuracies(run, summary))
display(tables.save(run, distance_table(distances, "standard"), "distances", "L2 distance to the boundary.", 3))
figures.distance_curves(run, distances)

# %% [markdown]
# ### β, the task loss, other architectures
# *uncentred* has images in [0,1], which are all nearly parallel to a constant image; all other models have them in [-1,1].
# *first_literal* uses the sign that the summary prints, which pushes the gradient away from the image.

# %%
swept = training.train_each(run, study.sweep_methods(s, names), images, attack, seeds=s.seeds[:1])
tasked = training.train_each(run, study.task_methods(s, names), images, attack, seeds=s.seeds[:1])
other = study.train_architectures(run, s, images, attack)
groups = study.by_task(s, tasked, swept, other)
more = study.others_each(run, groups, images.test)
others = evaluation.summary(more)

# %%
swept_cosines = study.cosine_table(run, trained | swept, {"test images": sample}, names[:1])
by_beta = study.sweep_points(s, [summary, others], swept_cosines, names[0])
display(figures.panels(run, by_beta, "sweep", x="β of the first layer", label=""))
beside = claims.beside("gfa", "reported", others[others["method"].isin([*tasked, *other, "first_literal"])])
beside["cosine", "here"] = study.first_cosines(run, groups, sample).reindex(beside.index)
tables.save(run, beside, "others", "Other task losses and architectures: accuracy (%) and cosine.", 2)

# %% [markdown]
# ## Part 4: is the robustness real?
# Three signs come first: the size of the gradients that attacks follow, the audit's signs of masked gradients, and accuracy
# against ε, which falls to zero for a robust model. Then the paper's own attacks are compared with the best of all attacks,
# image by image. These include AutoAttack, Square, transfer, restarts, and an attack made for this defence.
#
# The last table counts images as the paper does. Reviews of the paper say that it counts only images that *all* models
# classify correctly without attack. The table has the same attacks on those images, for standard training, PGD-AT, FIRST and
# DEEP with all seeds.

# %%
display(source.show(study.adaptive, trial.judge))
sizes = landscape.gradient_sizes(run, trained, sample, s.task)
checks = audit.audit_each(run, trained, subset(images.test, s.audit_images, 0), eps=s.eps_linf, norm="linf", transfer_from=judge)
display(tables.save(run, sizes, "gradients", "Length of the input gradients.", 4))
tables.save(run, checks, "audit", "Signs of masked gradients.")

# %%
curve = evaluation.sweep(run, trained, subset(images.test, s.sweep_images, 0), study.sweep_attack(), s.epsilons)
again = evaluation.evaluate_each(run, trained, some, study.attacks(s, s.task), "trial")
everything = trial.worst([again, strong])
trials = trial.judge(everything, audit.signs(run), len(images.test.classes))

# %%
display(tables.save(run, trials, "trial", "Own attacks, and the best of all, image by image (%)."))
display(figures.panels(run, trial.points(trials, everything, curve, "linf"), "trial", x="x", label="accuracy (%)"))
display(evaluation.flags(table, strong, pixel, curve, more))
joint = study.jointly_correct(everything)
on_joint = evaluation.wide(evaluation.summary(joint)) if len(joint) else "no image is right under all models"
tables.save(run, on_joint, "joint", "Accuracy (%) on jointly correct images.") if len(joint) else on_joint

# %% [markdown]
# ### Verdicts
# *Reproduced*: the 95 % interval of the measured difference, paired by image, is above zero, and the difference is at least
# half of the paper's. *Direction only*: the interval is above zero, but the difference is smaller. *Not reproduced*: the
# interval reaches zero or is below it, and it ends below half of the paper's difference. *Not tested here*: the interval
# contains both zero and that half, a model is missing or at chance, or the paper's own table shows no gain. Without a number
# in the paper, one point replaces that half. The caption lists where the run differs from the paper. For ratios, one replaces zero. A claim that
# something is kept is reproduced if the interval stays above the claim's floor.

# %%
rows = [everything[everything["measure"] == "worst"], landscape.flatness(run, trained, sample), *[joint] * bool(len(joint))]
aligned, ratios = evaluation.summary(study.cosine_rows(run, trained, parts, names[0])), study.ratio_rows(distances, "standard")
measured = study.measured([summary, others, ratios, *map(evaluation.summary, rows)], aligned)
verdicts = claims.judge("gfa", run, measured, len(images.test.classes), audit.signs(run))
run.finish()
claims.show(verdicts)
