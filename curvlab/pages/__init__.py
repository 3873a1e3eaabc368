"""HTML pages that carry everything within them: data, script, style, and the library that draws."""
