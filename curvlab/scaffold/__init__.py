"""New plugins: what ``curvlab plugins new KIND NAME`` writes, from templates inside this package.

A template is a file ``*.tmpl`` for ``string.Template``; those of ``templates/common`` are in every project,
those of ``templates/KIND`` in projects of that kind.  Words in capitals in their paths are replaced.
"""
