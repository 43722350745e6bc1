"""Saving and loading the state of a run, so that an interruption loses nothing.

``state_tree`` turns states into JSON and tensors and back, ``files`` keeps them on disk,
``lock`` keeps a path for one run, ``fingerprint`` tells one problem from another,
``journal`` remembers what the step under way has evaluated, ``checkpoint`` decides when
to save, ``signals`` turns SIGINT and SIGTERM into an orderly end and passes them on.
"""
