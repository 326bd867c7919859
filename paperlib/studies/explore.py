"""The notebook `explore`: an interactive view of one image, one network and one attack."""

import html
import sys
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, Field
from torch import nn

from paperlib import zoo
from paperlib.attacks import Norm
from paperlib.audit import probes
from paperlib.data import ImageSet, as_float, check_name, load_test
from paperlib.data.folder import located
from paperlib.figures import closeup as sheets
from paperlib.geometry.closeup import CloseUp, close_up
from paperlib.models import external
from paperlib.runs.files import InputError
from paperlib.runs.run import Run, device_of
from paperlib.runs.settings import Count, Images, Positive, Settings

IMAGES = 100  # number of test images to choose from
LARGEST: dict[Norm, int] = {"linf": 32, "l2": 512}  # ε × 255 at the slider's end: 8 in L∞ and 128 in L2 share a position
NOBODY = "Nobody is here to move controls. Opened in JupyterLab, say by `make lab`, this cell shows them."


class ExploreSettings(Settings):
    """Settings of network, image and attack."""

    model: str  # name of a zoo network, or FILE.py:FUNCTION as for `paperlib audit`
    weights: str | None  # weights file for FILE.py:FUNCTION; None: the weights that the function sets
    data: Annotated[str, AfterValidator(check_name)] | None  # None: the data of the zoo network
    image_size: Count | None  # size in pixels to which a folder's images are resized
    image: Images  # index of the test image, from 0
    norm: Literal["linf", "l2"]
    eps: Positive  # ε in the norm, for images in [0,1]
    loss: Literal["ce", "margin", "dlr"]  # loss that the attack maximises and the figure shows
    steps: Count  # number of PGD steps, of size 2.5 ε / steps
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, max_length=1)]  # seed of the random start
    devices: Literal[1]


STUDIES = {"explore": ExploreSettings}


def subject(settings: ExploreSettings) -> tuple[nn.Module, ImageSet]:
    """Load the network on the settings' device, and test images, equally many of each class.

    Raises InputError if there is no such network or data, or if the network does not accept such images.
    """
    file, _, function = settings.model.rpartition(":")
    own = settings.model.endswith(".py") or bool(file)
    if own and settings.data is None:
        raise InputError(f"model = {settings.model}: data must name its images, such as folder:PATH")
    if not own and settings.weights is not None:
        raise InputError(f"weights = {settings.weights}: {settings.model} has its weights in the zoo; leave weights out")
    weights = None if settings.weights is None else located(settings.weights)
    spec = f"{located(file)}:{function}" if file else settings.model
    network = external.from_file(spec, weights) if own else zoo.load(settings.model)
    images = load_test(settings.data or zoo.card(settings.model)["asked"]["data"], IMAGES, settings.image_size)
    if images.images.ndim != 4:
        raise InputError(f"data = {settings.data}: these are points; choose a data set of images")
    with torch.no_grad():
        probes.answers(network, as_float(images.images[:1]), images.labels[:1], classes=len(images.classes))
    return network.to(device_of(settings)), images


def look(settings: ExploreSettings, network: nn.Module, images: ImageSet) -> tuple[CloseUp, int]:
    """Return the close-up of the settings' image, and its label. Raises InputError if there is no such image."""
    if settings.image >= len(images):
        raise InputError(f"image = {settings.image}: there are images 0 to {len(images) - 1} here")
    device, label = device_of(settings), int(images.labels[settings.image])
    image = as_float(images.images[settings.image : settings.image + 1])[0].to(device)
    how = {"eps": settings.eps, "norm": settings.norm, "loss": settings.loss, "steps": settings.steps}
    return close_up(network, image, label, **how, seed=settings.seeds[0]), label  # type: ignore[arg-type]


# Controls ------------------------------------------------------------------------------------------------------------


def attended() -> bool:
    """Return whether the notebook is interactive: a headless run tells the kernel that nobody can answer input requests."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    asked: dict[str, Any] = getattr(shell, "get_parent", dict)()  # the request that runs this cell
    return bool(asked.get("content", {}).get("allow_stdin", False))


def controls(run: Run[ExploreSettings], network: nn.Module, images: ImageSet) -> Any:
    """Return the controls with the picture, or a sentence if the notebook is not interactive."""
    return Controls(run.settings, network, images).box if attended() else NOBODY


class Controls:
    """Sliders and menus, and the picture that they change. Raises InputError if ipywidgets is not installed."""

    def __init__(self, settings: ExploreSettings, network: nn.Module, images: ImageSet) -> None:
        try:
            import ipywidgets as widgets
        except ModuleNotFoundError:
            raise InputError("the controls need ipywidgets: pip install -e '.[lab]' in the project's folder") from None
        self.given = self.settings = settings
        self.network, self.images = network, images
        self.canvas, self.sheet = sheets.on_screen()
        once = {"continuous_update": False}  # redraw only at the end of a move
        models = list(dict.fromkeys([settings.model, *zoo.names()]))
        self.model = widgets.Dropdown(options=models, value=settings.model, description="model")
        self.image = widgets.IntSlider(settings.image, 0, len(images) - 1, description="image", **once)
        self.norm = widgets.ToggleButtons(options=[("ℓ∞", "linf"), ("ℓ2", "l2")], value=settings.norm, description="norm")
        now, top = 255 * settings.eps, LARGEST[settings.norm]
        self.eps = widgets.FloatSlider(now, min=min(now, top / 64), max=max(now, top), step=top / 64, description="ε × 255",
                                       **once)  # fmt: skip
        self.loss = widgets.Dropdown(options=["ce", "margin", "dlr"], value=settings.loss, description="loss")
        self.steps = widgets.IntSlider(settings.steps, 1, max(50, settings.steps), description="steps", **once)
        self.picture, self.said = widgets.Image(format="png"), widgets.HTML()
        columns = [widgets.VBox([self.model, self.image, self.loss]), widgets.VBox([self.norm, self.eps, self.steps])]
        self.box = widgets.VBox([widgets.HBox(columns), self.said, self.picture])
        self.draw()
        self.model.observe(self._other_model, "value")
        self.norm.observe(self._other_norm, "value")
        for control in (self.image, self.eps, self.loss, self.steps):
            control.observe(self.draw, "value")

    def draw(self, _: Any = None) -> None:
        """Compute the close-up and draw it. An InputError is shown below the controls, and the picture stays."""
        self.settings = self.settings.model_copy(
            update={"image": self.image.value, "norm": self.norm.value, "eps": self.eps.value / 255,
                    "loss": self.loss.value, "steps": self.steps.value}
        )  # fmt: skip
        try:
            seen, label = look(self.settings, self.network, self.images)
            self.sheet.show(seen, label, self.images.classes, self.settings.norm)
            self.picture.value, self.said.value = sheets.picture(self.canvas), ""
        except InputError as error:
            self.said.value = html.escape(str(error))

    def _other_model(self, change: Any) -> None:
        """Load the chosen network; a zoo network brings its own images."""
        own = {"data": self.given.data, "weights": self.given.weights} if change["new"] == self.given.model else {}
        other = self.settings.model_copy(update={"data": None, "weights": None, **own, "model": change["new"]})
        try:
            self.network, self.images = subject(other)
        except InputError as error:
            self.said.value = html.escape(str(error))
            return
        self.settings, self.image.max = other, len(self.images) - 1
        self.draw()

    def _other_norm(self, change: Any) -> None:
        """Scale ε to the same slider position in the other norm. The change of ε redraws."""
        factor = LARGEST[change["new"]] / LARGEST[change["old"]]
        with self.eps.hold_trait_notifications():
            for name in ("min", "max", "step", "value"):
                setattr(self.eps, name, factor * getattr(self.eps, name))
