"""Schedule: a declared PrimFunc and a rule's config become a scheduled PrimFunc.

Rules hold steps, configs hold numbers. `x86/` and `cuda/` have the rules, a file a family; steps.py what both use.
"""
