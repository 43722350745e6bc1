"""Runs: ``minimize``, its loop over stages and steps, and what of them is saved.

``state_tree`` turns states into JSON and tensors and back, ``files`` keeps them on disk,
``lock`` keeps a path for one run, ``fingerprint`` tells one problem from another,
``saved_products`` keeps those of the step under way, ``checkpoint`` decides when to save,
``signals`` turns SIGINT and SIGTERM into an orderly end and passes them on.
"""
