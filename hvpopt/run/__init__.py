"""Runs: ``minimize``, its loop over stages and steps, and checkpoints.

``minimize`` checks the arguments and ``_loop`` takes the steps: on ``_current``, the
objective without bad parts; against the limits of ``_account``; in sampled stages with
the best model of ``_samples``; saved by ``_saving``. ``_limits`` and ``signals`` end a
run, and ``result`` and ``history`` report it. ``_state`` is the state of a run,
``state_tree`` converts it to JSON and tensors and back, ``_files`` writes these,
``_checkpoint`` decides when, ``_saved_products`` keeps the products of the current step,
``_fingerprint`` identifies the problem, and ``_lock`` reserves a path for one run.
"""
