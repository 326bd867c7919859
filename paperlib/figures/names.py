"""Display names of methods and measures."""

import re

import numpy as np

NAMES = {
    # trainings
    "standard": "Standard", "vanilla": "Vanilla", "gradient_penalty": "Gradient penalty", "jacobian": "Jacobian",
    "pgd_at": "PGD-AT", "pgd_at_long": "PGD-AT, long", "trades": "TRADES", "mart": "MART", "cons_at": "Cons-AT", "wa": "WA",
    "teacher": "Teacher (stand-in)", "teacher_linf": "PGD-AT ℓ∞ (teacher)", "teacher_l2": "PGD-AT ℓ2 (teacher)",
    # PAG
    "pag": "PAG (NN)", "one_image": "One Image", "class_mean": "Class Mean", "nearest_neighbor": "Nearest Neighbor",
    "kmeans": "k-means centroid", "wrong_class": "Class Mean, wrong class",
    "rigd": "RIGD", "rigd_linf": "RIGD ℓ∞", "rigd_l2": "RIGD ℓ2",
    # GFA
    "first": "FIRST", "deep": "DEEP", "mlp_standard": "Standard", "mlp_first": "FIRST", "mlp_deep": "DEEP",
    # RAAT
    "raat": "RAAT", "raat_plus_plus": "RAAT++", "raat_sharp": "RAAT#", "two_views": "2 views", "bound": "BOUND",
    "dicar": "DICAR", "toy_vanilla": "clean training", "toy_pgd_at": "PGD-AT", "toy_raat": "RAAT",
    # DAAT and what stands in for depth
    "daat": "DAAT", "without_align": "DAAT without alignment", "daat_exact": "DAAT, exact depth",
    "daat_learned": "DAAT, learned depth", "daat_pretrained": "DAAT, pretrained depth",
    "daat_rgb_edges": "DAAT, the image's edges", "daat_shuffled": "DAAT, another image's depth",
    "daat_uniform": "DAAT, uniform", "rgb_edges": "the image's edges",
    # combinations
    "pag_raat": "PAG + RAAT", "dicar_daat": "DICAR + DAAT", "gfa_pgd_at": "GFA + PGD-AT",
    # attacks
    "clean": "No attack", "fgsm": "FGSM", "pgd_linf": "PGD ℓ∞", "pgd_l2": "PGD ℓ2", "pgd_10": "PGD-10", "pgd_20": "PGD-20",
    "pgd_100": "PGD-100", "pgd_task": "PGD (task loss)", "pgd_ce": "PGD (CE)", "pgd_margin": "PGD (margin)",
    "apgd_ce": "APGD-CE", "apgd_dlr": "APGD-DLR", "square": "Square", "cw": "C&W", "autoattack": "AutoAttack",
    "autoattack_linf": "AutoAttack ℓ∞", "autoattack_l2": "AutoAttack ℓ2", "deepfool": "DeepFool", "ead": "EAD",
    "ddn": "DDN", "deepfool_l2": "DeepFool ℓ2", "ead_l2": "EAD ℓ2", "cw_l2": "C&W ℓ2", "ddn_l2": "DDN ℓ2",
    # other measures
    "nrr": "NRR", "pag_score": "PAG score", "margin_across": "margin across > ε", "margin_along": "margin along > ε",
    "pag_cosine": "PAG cosine", "gfa_cosine_1": "GFA cosine, layer 1", "gfa_cosine_2": "GFA cosine, layer 2",
    "gfa_cosine_3": "GFA cosine, layer 3", "robust_alignment": "Robust Alignment", "flatness": "tangential flatness",
    "linearity": "local linearity", "small_gradient": "small gradient", "edge_cosine": "attention and edges, cosine",
    "gradient_on_edges": "gradient on depth edges", "gradient_on_contours": "gradient on the image's edges",
    "first_order_rise": "first-order rise of the loss", "cam_correlation": "Grad-CAM, correlation",
    "cam_moved": "Grad-CAM, moved", "cam_on_object": "Grad-CAM on object",
    "cam_on_object_attacked": "Grad-CAM on object, attacked",
}  # fmt: skip

# Axis labels of the columns of training histories.
CURVES = {
    "clean_accuracy": "validation, no attack (%)", "robust_accuracy": "validation, attacked (%)",
    "misalignment": "misalignment, Σ(1 − cos)", "jacobian": "‖J‖², estimated", "total": "loss",
}  # fmt: skip
# Axis labels of measures that are no accuracy.
SCORES = {
    "pag_score": "targeted images seen as the target (%)",
    "margin_along": "samples farther than ε (%)",
    "margin_across": "samples farther than ε (%)",
}

# Methods with a fixed colour: a row for each of `style.COLOURS`; those after the colon are open and dashed.
FAMILIES = """
standard vanilla toy_vanilla mlp_standard : twin
pgd_at toy_pgd_at teacher_linf : pgd_at_long two_views teacher_l2
class_mean pag raat toy_raat first mlp_first daat jacobian : daat_exact raat_sharp
nearest_neighbor deep mlp_deep raat_plus_plus without_align : dicar daat_learned
one_image trades daat_shuffled : bound daat_pretrained
kmeans mart uniform daat_uniform : wrong_class
rigd rigd_linf cons_at daat_rgb_edges : rigd_l2 teacher
gradient_penalty : wa
"""
LOOKS = {
    name: (colour, bool(variant))
    for colour, row in enumerate(FAMILIES.strip().splitlines())
    for variant, names in enumerate(row.split(" : "))
    for name in names.split()
}


def title(name: str | int) -> str:
    """Return the display name of a method or measure; a number, such as a seed, stays a number."""
    name = str(name)
    if name.endswith("_equal"):
        return f"{title(name.removesuffix('_equal'))}, equal compute"
    if match := re.fullmatch(r"(\w+)([,:] .*)", name):  # a name and words about it
        return title(match[1]) + match[2]
    return NAMES.get(
        name,
        name.replace("daat_lambda_", "DAAT, λ = ").replace("lambda_", "λ = ").replace("beta_", "β = ").replace("_", " "),
    )


def in_points(measure: str, value: float) -> float:
    """Return a stored measure for readers: a share in percent, a ratio as it is."""
    return value if measure.endswith("_ratio") else 100 * value


def with_interval(value: float, low: float, high: float, digits: int = 1) -> str:
    """Format a value with its interval as papers do: 57.0 (50–64), −1.0 (−3 to 1); – without a value."""
    if np.isnan(value):
        return "–"
    words = [f"{number:.{max(0, digits - 1)}f}".replace("-", "−") for number in (low, high)]
    whole = f"{value:.{digits}f}".replace("-", "−")
    return whole if np.isnan(low) or np.isnan(high) else f"{whole} ({(' to ' if min(low, high) < 0 else '–').join(words)})"
