"""The report's plots, drawn as SVG."""
