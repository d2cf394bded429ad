"""Studies: where Optuna, the model and SQL meet."""
