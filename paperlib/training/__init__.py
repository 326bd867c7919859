"""Training: the method supplies the loss, and the settings determine everything else."""

from paperlib.training.devices import backward, computes_in_bf16, draw_from, over_devices
from paperlib.training.each import build, histories, judge, one_batch, train_each
from paperlib.training.kept import DivergenceError
from paperlib.training.loop import fit, validate
from paperlib.training.optimizer import learning_rate
