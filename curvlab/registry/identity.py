"""What core and plugins must agree on before they can speak: the project's name and the API's version."""

from __future__ import annotations

#: pluggy's project name and the entry-point group
PROJECT = "curvlab"

#: version of the hooks and protocols, not of the package; a plugin of the same major version and
#: of no newer minor version works with this core
API_VERSION = "1.0"
