# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # PAG on a line: do aligned gradients move the decision boundary away from the data?
#
# Section 5.1 and Appendix C.1 of *Do Perceptually Aligned Gradients Imply Adversarial Robustness?* (Ganz, Kawar & Elad,
# ICML 2023). Two classes lie on one straight line in the plane. A network that only has to tell them apart may put its
# boundary anywhere **across** the line. It puts it close to the data, so a small step off the line changes the class.
#
# The paper aligns the input gradients with the direction toward the other class, which removes that freedom. It reports
# 75.5 % accuracy under attack, where plain training has 0.0 %. The paper shows one seed. Here ten seeds draw weights and
# batches; the samples stay the same.

# %% [markdown]
# ## Settings
# Each knob below shows its value in the preset `quick`. Under another preset, a knob left at that value is as that preset
# says. Any other setting goes by name into `settings`, say `settings = {"momentum": 0.8}`. What stands there counts under
# every preset, also quick's own value. So does what papermill passes with `-p`. In a knob, `None` is as the preset says.
# To set nothing where that is allowed, write the text `"null"`. Unknown names are refused, with a list of those allowed.
#
# λ and the sample size of the nearest neighbours are not published. This project chose 1 and 100.

# %% tags=["parameters"]
preset: str = "quick"  # quick · laptop · gpu · paper
seeds: list = [0, 1, 2]  # one training with each method for each seed
weight: float = 1.0  # λ of Equation 1
neighbors: int = 100  # sample size of Nearest Neighbor, per class
gradient: str = "log_softmax"  # log_softmax (the authors' code) · logit (Equation 1 as printed)
eps: float = 15.0  # radius of the L2 attack
attack_steps: int = 10  # of the attack
attack_step_size: float = 2.0  # L2 length of each
epochs: int = 100  # of each training
batch_size: int = 128  # of each training
learning_rate: float = 0.01  # of Adam
settings: dict = {}  # any other setting by name

# %%
from IPython.display import display

from paperlib import claims, evaluation, figures, models, studies, training
from paperlib.claims import power
from paperlib.data import toy
from paperlib.figures import source, tables
from paperlib.methods import pag
from paperlib.studies import pag as study

run = studies.start("toy_pag", globals())
display(run)
power.show(run, study.toy_plan(run.settings))

# %% [markdown]
# ## Data and network
# Each class has three modes of 1,000 samples, $x_1 \sim N(c, 1)$ and $x_2 = 2 x_1$. The centres are −50, −10, 30 and
# −30, 10, 50. Neighbouring modes of different classes are 44.7 apart, 22.4 from halfway. An attack of $\varepsilon = 15$
# cannot turn a sample into one of the other class. A classifier that follows the data loses nothing to it.

# %%
data = toy.load(seed=0)
network = training.build(run.settings, data, seed=0)
models.summary(network, data.train.images.shape[1:])

# %% [markdown]
# ## Method
# Equation 1 adds to the cross-entropy how far the class gradients point away from their targets,
#
# $$\mathcal{L} = \mathcal{L}_{CE}(f(x), y) + \lambda \sum_{t=1}^{C} \left(1 - \cos(\nabla_x f(x)_t,\; g(x, t))\right).$$
#
# Section 4.2 points each target toward the nearest of a few samples of the class, $g(x, t) = r_t(x) - x$. As in the
# authors' code for images, $f(x)_t$ is the log-softmax here (`gradient`).

# %%
source.show(pag.PAG.loss, pag.toward)

# %% [markdown]
# One batch goes through the loss with its terms, on the untrained network, at the middle of the training. Step into the
# call to follow it.

# %%
methods = study.toy_methods(run.settings, data.train)
batch, step = training.one_batch(run, data)
terms = methods["pag"].loss(network.to(run.device), batch, step)
{name: term.item() for name, term in terms.items()}

# %% [markdown]
# ## Training
# As in C.1: Adam at 0.01, batches of 128, 100 epochs. Both methods start from the same weights and see the same batches.

# %%
trained = training.train_each(run, methods, data)

# %% [markdown]
# ## Figure 3: where the boundary runs
# The second figure shows how far the boundary is from the samples. **Along** the line it belongs; **across** it there are
# no data. The distance is searched along these two directions alone, up to 60.

# %%
distances = study.toy_margins(run, trained, data.test)
display(figures.decision_boundaries(run, trained, data.test))
figures.margins(run, distances, run.settings.eps)

# %% [markdown]
# ## Under attack
# L2 PGD with 10 steps of 2 from the sample itself (Algorithm 1), $\varepsilon = 15$. There is no box: the plane has no
# bounds.

# %%
table = evaluation.evaluate_each(run, trained, data.test, study.toy_attacks(run.settings), box=None)
summary = evaluation.summary(study.with_margins(table, distances, run.settings.eps))
display(tables.save(run, claims.beside("pag", "toy", summary), "toy", "Accuracy (%) on the toy, beside the paper's."))
figures.accuracies(run, summary)

# %% [markdown]
# ## Verdicts
# Each claim is judged from the measured difference and its interval over seeds. *Reproduced*: the 95 % interval is above
# zero, and the difference is at least half of the paper's. *Direction only*: it is real but smaller.

# %%
verdicts = claims.judge("pag", run, summary, classes=2)
run.finish()
claims.show(verdicts)
