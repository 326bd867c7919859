import pytest

from paperlib.geometry import interpolation


@pytest.mark.parametrize("seed", range(5))
def test_each_order_leaves_the_next_power(seed: int) -> None:
    """As Δ is halved the share that is left shrinks by 2ᴷ⁻¹: the distance itself is of second order."""
    found = interpolation.remainders((0.02, 0.01), (2, 3, 4), seed=seed)
    for order in (2, 3, 4):
        shares = found[f"K = {order}"]
        assert shares.iloc[0] / shares.iloc[1] == pytest.approx(2 ** (order - 1), rel=0.2)
    assert (found.diff(axis=1).iloc[:, 1:] < 0).all().all()
