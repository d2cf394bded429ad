"""Find which attention layers of a pretrained transformer can become multi-query attention."""

__version__ = "0.1.0"
