"""Reference solutions of equations without a closed form: solved to nine digits or more.

``burgers``, ``allen_cahn`` and ``kdv`` each solve one equation; ``solution`` holds, interpolates and saves
what they find; ``preparation`` has the commands that write it to a file.
"""
