"""Engines that serve models, each run in its own environment by a driver script."""

from mqasearch.engines.engine import (
    ENGINES,
    Engine,
    EngineKind,
    Settings,
    Timing,
    engine_kind,
    engine_python,
)

__all__ = ["ENGINES", "Engine", "EngineKind", "Settings", "Timing", "engine_kind", "engine_python"]
