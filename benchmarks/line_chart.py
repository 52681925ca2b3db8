"""How the line charts of benchmarks open."""


def opening(width: int, height: int, left: int, title: str, said: str) -> list[str]:
    """The first elements of an SVG of this size: white ground, a title, a line below it."""
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text x="{left}" y="18" font-size="14" fill="#222222">{title}</text>',
        f'<text x="{left}" y="34" font-size="11" fill="#555555">{said}</text>',
    ]
