"""What asv measures of every commit; ``docs/benchmarks.md`` says what each number means.

The code here is the working tree's and the package is a commit's, perhaps an old one.  So nothing of the
package is imported but by ``try``, inside functions, or where every commit has it; what a commit lacks is
skipped by ``NotImplementedError`` in ``setup``; and what measures comes from the working tree (``meters``).

Numbers that do not depend on the machine (``track_``) gate at 1 %, times (``time_``) at a factor of two.
A class says ``version`` itself: it changes when a number changes its meaning, not when its code is edited.
"""
