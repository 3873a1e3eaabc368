"""Conformance suites: what a part of each kind owes, as checks that a plugin's tests and users can run.

Nothing here needs pytest; with it, a subclass in a test file is collected as one test for each check.
"""

from collections.abc import Mapping

from curvlab.testing.conformance.average import AverageConformance
from curvlab.testing.conformance.backend import BackendConformance
from curvlab.testing.conformance.callback import CallbackConformance
from curvlab.testing.conformance.check import Check, Naive, Outcome, Report, Skipped, check
from curvlab.testing.conformance.damping import DampingConformance
from curvlab.testing.conformance.estimator import EstimatorConformance
from curvlab.testing.conformance.inverse import InverseConformance
from curvlab.testing.conformance.krylov import KrylovConformance
from curvlab.testing.conformance.layer import LayerConformance
from curvlab.testing.conformance.loss import LossConformance
from curvlab.testing.conformance.method import MethodConformance
from curvlab.testing.conformance.preconditioner import PreconditionerConformance
from curvlab.testing.conformance.reporter import ReporterConformance
from curvlab.testing.conformance.sampler import SamplerConformance
from curvlab.testing.conformance.schedule import ScheduleConformance
from curvlab.testing.conformance.step_rule import StepRuleConformance
from curvlab.testing.conformance.structure import StructureConformance
from curvlab.testing.conformance.suite import Conformance
from curvlab.testing.conformance.task import TaskConformance
from curvlab.testing.conformance.transform import TransformConformance

#: kind of part -> its suite
SUITES: Mapping[str, type[Conformance]] = {
    suite.kind: suite
    for suite in (
        LayerConformance,
        StructureConformance,
        EstimatorConformance,
        PreconditionerConformance,
        InverseConformance,
        KrylovConformance,
        DampingConformance,
        StepRuleConformance,
        TransformConformance,
        ScheduleConformance,
        SamplerConformance,
        BackendConformance,
        LossConformance,
        TaskConformance,
        MethodConformance,
        AverageConformance,
        CallbackConformance,
        ReporterConformance,
    )
}

__all__ = [
    "SUITES",
    "AverageConformance",
    "BackendConformance",
    "CallbackConformance",
    "Check",
    "Conformance",
    "DampingConformance",
    "EstimatorConformance",
    "InverseConformance",
    "KrylovConformance",
    "LayerConformance",
    "LossConformance",
    "MethodConformance",
    "Naive",
    "Outcome",
    "PreconditionerConformance",
    "Report",
    "ReporterConformance",
    "SamplerConformance",
    "ScheduleConformance",
    "Skipped",
    "StepRuleConformance",
    "StructureConformance",
    "TaskConformance",
    "TransformConformance",
    "check",
]
