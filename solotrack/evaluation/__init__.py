"""Metrics, which know plain dicts, arrays and RLEs only, and the Detectron2 evaluators over them. Import the module you need."""
