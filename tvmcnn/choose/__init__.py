"""Choose: each kernel gets its algorithm, layouts, rule and config, from records or by estimate."""
