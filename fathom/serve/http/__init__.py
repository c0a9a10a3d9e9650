"""What every request passes whatever its route: keys, limits, body parsing; the OpenAPI document, the page's files."""
