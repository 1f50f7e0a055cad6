"""Pictures of QR codes as a camera may see them, read by the page's own reader in a browser."""

from __future__ import annotations

from typing import Any, NamedTuple

import segno


class Seen(NamedTuple):
    """How a code is seen."""

    turned: float = 0  # degrees
    tilted: float = 0  # 0.5: its far edge looks a tenth smaller
    noise: float = 0  # of 255
    module: float = 6  # pixels
    damaged: int = 0  # modules of the data, in one place, painted over


PLAIN = (Seen(), Seen(turned=13, noise=30, damaged=3))
HARD = (
    *PLAIN,
    *(Seen(turned=angle, noise=30, module=5) for angle in (45, 90, 180, 270, 300)),
    *(Seen(turned=angle, tilted=0.5, noise=40) for angle in (5, 20, 110, 200, 340)),
    Seen(module=3.3),
    Seen(noise=60, damaged=4),
)
DRAW = """
const [rows, turned, tilted, noise, module, damaged] = arguments;
const canvas = document.createElement("canvas");
const [width, height] = [canvas.width, canvas.height] = [640, 480];
const drawing = canvas.getContext("2d"), size = rows.length;
drawing.fillStyle = "#998";
drawing.fillRect(0, 0, width, height);
drawing.translate(width / 2, height / 2);
drawing.rotate(turned * Math.PI / 180);
const place = (x, y) => {
  const u = (x - size / 2) * module, v = (y - size / 2) * module;
  const far = 1 + tilted * u / 1000 + tilted * v / 1600;
  return [u / far, v / far];
};
for (let y = -4; y < size + 4; y++) {
  for (let x = -4; x < size + 4; x++) {
    const inside = x >= 0 && y >= 0 && x < size && y < size;
    const hidden = Math.abs(x - size / 2) < damaged / 2 && Math.abs(y - size / 2) < damaged / 2;
    drawing.fillStyle = inside && rows[y][x] === "1" || hidden ? "#222" : "#ddd";
    drawing.beginPath();
    for (const [a, b] of [[0, 0], [1.02, 0], [1.02, 1.02], [0, 1.02]]) {
      drawing.lineTo(...place(x + a, y + b));
    }
    drawing.fill();
  }
}
const image = drawing.getImageData(0, 0, width, height);
let random = 12345;
for (let at = 0; at < image.data.length; at += 4) {
  random = (random * 1103515245 + 12345) & 0x7fffffff;
  const change = (random / 0x7fffffff - 0.5) * noise + (at / 4 % width) / width * 60 - 30;
  for (let k = 0; k < 3; k++) image.data[at + k] += change;
}
return readCode(image);
"""


def read(driver: Any, text: str, seen: Seen, error: str = "m") -> str | None:
    """What the reader of the page that is open finds in a picture of this text."""
    code = segno.make(text, error=error, micro=False, boost_error=False)
    rows = ["".join("1" if bit else "0" for bit in row) for row in code.matrix]
    found: str | None = driver.execute_script(DRAW, rows, *seen)
    return found
