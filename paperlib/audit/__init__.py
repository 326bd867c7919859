"""Is the robustness real? Checks for masked gradients, and a verdict."""

from paperlib.audit.benchmark import Benchmark, benchmark
from paperlib.audit.checks import (
    CHECKS,
    CHUNK,
    FACTORS,
    FEW,
    MEANINGS,
    RIGHT,
    SOME,
    Audit,
    Check,
    Figure,
    Verdict,
    as_json,
    audit,
    audit_each,
    check_radius,
    figures,
    share,
    signs,
    signs_of,
    verdict_of,
)  # fmt: skip
