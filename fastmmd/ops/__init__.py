"""The operations: public functions with checks and docstrings, and the operators behind them with their derivatives."""
