"""Runs side by side: what each reached and when, what differs in their configurations, and as a page."""
