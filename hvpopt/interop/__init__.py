"""Interoperation: hvpopt's methods and operators inside other libraries, and back."""
