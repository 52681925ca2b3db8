"""Kinds of tasks: what several task files share."""
