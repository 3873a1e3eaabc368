"""The vocabulary: what a part is, and what parts say to each other.

Parts are frozen dataclasses whose fields are their settings.  A state is a record; a method that
changes one takes it as its first argument.  Nothing here computes.
"""
