"""Engines that serve models; a driver script runs each engine in its own environment."""

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
