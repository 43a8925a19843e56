"""What a toy-like bust is made of: the proportions of a head and a view's expression become solids.

Lengths are in units of about half a head's width; x is forward, y to the person's left, z up. The origin is the
middle of the head at the height of the eyes. Built, the bust stands in the world at `SCALE` with its eyes about
`EYE_LEVEL` above the floor. The head is rigid but for jaw and cheeks, so whatever is painted on a face is painted
in the head's own coordinates, see `Bust.on_head`, and turns with it.
"""

from dataclasses import dataclass

import numpy as np

from zoo.world.bodies.anatomy import Figure
from zoo.world.render.geometry import Floats, turn
from zoo.world.render.solids import Solids

SCALE = 0.5
EYE_LEVEL = 1.55
BEARDS = ("none", "moustache", "goatee", "full")
STYLES = ("bald", "buzz", "short", "spiky", "curly", "afro", "bob", "long", "bun", "mohawk")
HATS = ("none", "cap", "beanie", "brimmed")

# The least and the greatest value of every proportion of `Head`.
RANGES: dict[str, tuple[float, float]] = {
    "width": (0.73, 1.10), "length": (1.00, 1.62), "crown": (0.80, 1.24), "jaw": (0.36, 0.92),
    "chin": (0.14, 0.42), "chin_out": (-0.18, 0.20), "cheek": (0.16, 0.40), "cheek_height": (-0.56, -0.18),
    "brow_ridge": (-0.04, 0.16),
    "nose_length": (0.30, 0.74), "nose_width": (0.07, 0.33), "nose_out": (0.06, 0.56), "bridge": (0.03, 0.19),
    "nose_lift": (-0.16, 0.18),
    "eye_gap": (0.32, 0.55), "eye_width": (0.15, 0.31), "eye_height": (0.07, 0.24), "eye_slant": (-0.40, 0.40),
    "iris": (0.58, 1.05), "eye_bulge": (0.0, 0.15),
    "brow_height": (0.26, 0.58), "brow_thick": (0.02, 0.13), "brow_slant": (-0.45, 0.50), "brow_length": (0.16, 0.38),
    "mouth_width": (0.16, 0.58), "upper_lip": (0.02, 0.16), "lower_lip": (0.03, 0.19), "mouth_drop": (0.26, 0.62),
    "mouth_curve": (-0.10, 0.12),
    "ear": (0.18, 0.58), "ear_off": (0.05, 0.95),
    "hair_line": (0.56, 1.06), "hair_peak": (-0.16, 0.24), "temples": (0.05, 0.75),
}  # fmt: skip


@dataclass(frozen=True)
class Head:
    """Proportions of one individual in the units of this module; `RANGES` bounds each number.

    Args:
        width: half the skull's width. length: from the eyes down to the chin. crown: height of the skull.
        jaw: distance of the jaw's corners from the middle, in widths. chin: its half width. chin_out: its reach.
        cheek: radius of the cheekbones. cheek_height: their place.
        brow_ridge: how far the bone above the eyes stands out.
        nose_length: from the eyes down. nose_width: half the distance of the nostrils. nose_out: reach of the tip.
        bridge: radius of the nose between the eyes. nose_lift: how far the tip points up.
        eye_gap: half the distance of the eyes. eye_width, eye_height: half lengths of their openings.
        eye_slant: outer corner raised (radians). iris: its size, as a share of what the opening would show.
        eye_bulge: how far the eyeball stands out.
        brow_height: above the eyes. brow_thick: half thickness. brow_slant: outer end lowered. brow_length: half.
        mouth_width: half width. upper_lip, lower_lip: fullness. mouth_drop: place between nose (0) and chin (1).
        mouth_curve: corners raised at rest.
        ear: half height. ear_off: how far they stand off (radians).
        hair_line: height of the hair's edge. hair_peak: how far it dips in the middle. temples: how far it falls
            towards the temples.
    """

    width: float
    length: float
    crown: float
    jaw: float
    chin: float
    chin_out: float
    cheek: float
    cheek_height: float
    brow_ridge: float
    nose_length: float
    nose_width: float
    nose_out: float
    bridge: float
    nose_lift: float
    eye_gap: float
    eye_width: float
    eye_height: float
    eye_slant: float
    iris: float
    eye_bulge: float
    brow_height: float
    brow_thick: float
    brow_slant: float
    brow_length: float
    mouth_width: float
    upper_lip: float
    lower_lip: float
    mouth_drop: float
    mouth_curve: float
    ear: float
    ear_off: float
    hair_line: float
    hair_peak: float
    temples: float

    @classmethod
    def of(cls, shares: dict[str, float]) -> "Head":
        """The head at ``shares`` in [0, 1] of the way from the least to the greatest of every proportion."""
        return cls(**{name: low + (high - low) * shares[name] for name, (low, high) in RANGES.items()})

    @property
    def mouth(self) -> float:
        """Height of the closed mouth's line."""
        return -(self.nose_length + self.mouth_drop * (self.length - self.nose_length))


@dataclass(frozen=True)
class Mood:
    """What a view does to head and face; angles in radians, 0 is at rest.

    Args:
        yaw: head turned to the person's left. nod: head lowered. tilt: head leaned to one side.
        smile: corners of the mouth raised, -1 to 1. open: mouth open, 0 to 1. brows: raised, -1 to 1.
        lids: eyes open, 0 (closed) to 1. gaze: iris off the middle to the left and up, in eye widths.
    """

    yaw: float = 0.0
    nod: float = 0.0
    tilt: float = 0.0
    smile: float = 0.0
    open: float = 0.0
    brows: float = 0.0
    lids: float = 1.0
    gaze: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class Dress:
    """What somebody wears.

    Args:
        style: one of `STYLES`. volume: how thick the hair lies, 0 to 1. beard: one of `BEARDS`.
        hat: one of `HATS`. shades: whether dark glasses are worn. scarf: whether a scarf is.
    """

    style: str = "bald"
    volume: float = 0.5
    beard: str = "none"
    hat: str = "none"
    shades: bool = False
    scarf: bool = False


@dataclass(frozen=True)
class Bust:
    """A built head with shoulders."""

    figure: Figure
    head: Head

    def on_head(self, points: Floats) -> Floats:
        """World points (3, N) in the head's own coordinates: (3, N)."""
        x, y, z = (points - self.figure.head_centre[:, None]) * np.float32(1 / SCALE)
        a = self.figure.head_axes
        return np.stack([a[0, k] * x + a[1, k] * y + a[2, k] * z for k in range(3)])


class _BustBuilder:
    """Collects solids part by part; what is added to the head moves with it."""

    def __init__(self, mood: Mood) -> None:
        self.axes = turn(mood.yaw, mood.nod, mood.tilt)
        neck = np.array([-0.25, 0.0, -0.9])  # the joint that the head turns on
        self.centre = neck + self.axes @ -neck
        self.rows: list[tuple[Floats, Floats, tuple[float, float, float], float]] = []
        self.parts: list[str] = []

    def body(self, part: str, at: Floats, radii: tuple[float, float, float], axes: Floats | None = None) -> None:
        """An ellipsoid of the shoulders."""
        self.rows.append((at, np.eye(3) if axes is None else axes, radii, 0.0))
        self.parts.append(part)

    def ball(
        self,
        part: str,
        at: tuple[float, float, float],
        radii: tuple[float, float, float],
        lean: Floats | None = None,
        taper: float = 0.0,
    ) -> None:
        """An ellipsoid of the head."""
        axes = self.axes if lean is None else self.axes @ lean
        self.rows.append((self.centre + self.axes @ np.array(at), axes, radii, taper))
        self.parts.append(part)

    def figure(self) -> Figure:
        """All solids at the world's scale."""
        up = np.array([0, 0, EYE_LEVEL])
        centre, axes, radii, taper = zip(*self.rows, strict=True)
        solids = Solids(
            (np.stack(centre) * SCALE + up).astype(np.float32),
            np.stack(axes).astype(np.float32),
            np.array(radii, np.float32) * np.float32(SCALE),
            np.array(taper, np.float32),
        )
        return Figure(solids, tuple(self.parts), (self.centre * SCALE + up).astype(np.float32), self.axes)


_SIDES = (1.0, -1.0)  # left, right
_DOWN = turn(tilt=np.pi)  # third axis down, so that a taper narrows the chin's end


def _face(builder: _BustBuilder, head: Head, mood: Mood) -> None:
    """Skull, jaw, chin, cheeks and what is in the middle of the face."""
    w, long = head.width, head.length
    drop = 0.16 * mood.open
    builder.ball("skull", (-0.15, 0, 0.32), (1.02, w, 0.95 * head.crown))
    narrow = 0.42 - 0.5 * (head.jaw - 0.42)
    builder.ball("face", (0.12, 0, -0.28 * long), (0.72, 0.86 * w, 0.72 * long), _DOWN, narrow)
    builder.ball("chin", (0.48 + head.chin_out, 0, -0.84 * long - drop), (0.24, head.chin, 0.21))
    builder.ball("muzzle", (0.58, 0, head.mouth - drop / 2), (0.25, 0.36, 0.28))
    raised = 0.06 * max(mood.smile, 0)
    for side in _SIDES:
        builder.ball("jaw", (0.08, side * head.jaw * w * 0.62, -0.54 * long - drop / 2), (0.42, 0.26, 0.38))
        r = head.cheek
        builder.ball("cheek", (0.45 + raised / 2, side * 0.46 * w, head.cheek_height + raised), (r, r * 1.1, r))
        builder.ball("eye", (0.58 + head.eye_bulge, side * head.eye_gap, 0), (0.24, 0.26, 0.24))
        if head.brow_ridge > 0:
            builder.ball("brow", (0.68 + head.brow_ridge, side * 0.34, 0.30), (0.12, 0.26, 0.08))
        builder.ball("nose", (0.74, side * head.nose_width, -head.nose_length + 0.05), (0.13, 0.10, 0.09))
        size = head.ear
        lean = turn(yaw=-side * head.ear_off, tilt=-side * 0.15)
        builder.ball("ear", (-0.08, side * (w + 0.02 + 0.12 * head.ear_off), -0.08), (0.62 * size, 0.07, size), lean)
    tip = np.array([0.76 + head.nose_out, -head.nose_length + 0.08 + head.nose_lift])
    root = np.array([0.74 + head.bridge * 0.6, 0.02])
    middle, along = (tip + root) / 2, tip - root
    length = float(np.sqrt((along * along).sum()))
    lean = turn(nod=float(np.arctan2(along[0], along[1])))
    builder.ball(
        "nose", (middle[0], 0, middle[1]), (head.bridge + 0.02, head.bridge + 0.02, length / 2 + 0.06), lean, -0.3
    )
    builder.ball("nose", (tip[0] - 0.06, 0, tip[1]), (0.14, 0.09 + 0.35 * head.nose_width, 0.12))


def _hair(builder: _BustBuilder, head: Head, dress: Dress) -> None:
    """The hair's volume; under a hat only what hangs out of it."""
    w, crown, thick, free = head.width, head.crown, 0.04 + 0.10 * dress.volume, dress.hat == "none"
    if dress.style in ("short", "spiky", "curly", "bob", "long", "bun"):
        builder.ball("cap", (-0.22, 0, 0.40), (1.05 + thick, w + 0.03 + thick, 0.95 * crown + thick))
    if dress.style in ("bob", "long"):
        reach = 0.78 if dress.style == "bob" else 1.35
        for side in _SIDES:
            builder.ball("lock", (-0.18, side * (w + 0.02), 0.25 - reach), (0.40, 0.16 + thick, reach))
        builder.ball("lock", (-0.78, 0, 0.25 - reach), (0.36, 0.85 * w, reach))
    if not free:
        return
    top = 0.32 + 0.95 * crown
    if dress.style == "afro":
        r = 1.12 + 0.25 * dress.volume
        builder.ball("cap", (-0.32, 0, 0.58), (r, r + 0.06, r))
    elif dress.style == "bun":
        builder.ball("lock", (-0.45, 0, top + 0.22), (0.36, 0.40, 0.34))
    elif dress.style == "mohawk":
        for x, z in ((0.42, -0.12), (-0.10, 0.08), (-0.62, -0.06)):
            builder.ball("lock", (x, 0, top + z), (0.36, 0.14, 0.30 + 0.2 * dress.volume))
    elif dress.style == "spiky":
        for x, y in ((0.45, -0.34), (0.45, 0.34), (0.2, 0), (-0.2, -0.5), (-0.2, 0.5)):
            rise = float(np.sqrt(max(1 - x * x - y * y, 0))) * 0.9
            lean = turn(nod=x * 0.7, tilt=-y)
            builder.ball("lock", (x, y, 0.40 + rise * crown), (0.2, 0.2, 0.42 + 0.2 * dress.volume), lean, 0.75)
    elif dress.style == "curly":
        for k in range(7):
            turned, high = (k - 3) * 0.62, 0.75 + 0.35 * (k % 2)
            x, y = 0.62 * np.cos(turned) - 0.1, 0.82 * w * np.sin(turned)
            builder.ball("lock", (x, y, high * crown + 0.05), (0.34, 0.34, 0.32))


def _hat(builder: _BustBuilder, head: Head, dress: Dress) -> None:
    """A hat of the dress's kind."""
    w, crown = head.width, head.crown
    if dress.hat == "cap":
        builder.ball("hat", (-0.20, 0, 0.76), (1.16, w + 0.17, 0.70 * crown), turn(nod=-0.08))
        builder.ball("brim", (0.98, 0, 0.66), (0.72, 0.72, 0.07), turn(nod=0.12))
    elif dress.hat == "beanie":
        builder.ball("hat", (-0.24, 0, 0.58), (1.16, w + 0.18, 0.98 * crown), turn(nod=-0.22))
        builder.ball("brim", (-0.24, 0, 0.58), (1.22, w + 0.24, 0.20), turn(nod=-0.22))
    elif dress.hat == "brimmed":
        builder.ball("hat", (-0.20, 0, 0.96), (1.14, w + 0.16, 0.62 * crown), turn(nod=-0.10))
        builder.ball("brim", (-0.14, 0, 0.76), (1.72, w + 0.78, 0.08), turn(nod=-0.10))


def _shoulders(builder: _BustBuilder, head: Head, dress: Dress) -> None:
    """A neck that follows the head, shoulders, and a scarf around the neck."""
    top, root = builder.centre + builder.axes @ np.array([-0.22, 0, -0.8]), np.array([-0.35, 0, -1.9])
    up = (top - root) / np.sqrt(((top - root) ** 2).sum())
    left = np.array([0, 1.0, 0]) - up[1] * up
    left /= np.sqrt((left * left).sum())
    axes = np.stack([np.cross(left, up), left, up], axis=1)
    builder.body("neck", (top + root) / 2, (0.50, 0.56 * head.width, 0.95), axes)
    builder.body("shirt", np.array([-0.35, 0, -2.75]), (0.74, 1.25, 1.0))
    for side in _SIDES:
        builder.body("shirt", np.array([-0.40, side * 1.05, -2.25]), (0.54, 0.80, 0.50), turn(tilt=-side * 0.40))
    if dress.scarf:
        builder.body("scarf", np.array([-0.22, 0, -1.50]), (0.90, 0.96, 0.40), turn(nod=0.1))


def build_bust(head: Head, dress: Dress, mood: Mood) -> Bust:
    """Builds the solids of a head with shoulders.

    Parts: skull, face, chin, muzzle, jaw, cheek, eye, brow, nose, ear (skin); cap, lock, beard (hair); hat, brim;
    lens; neck; shirt; scarf.
    """
    builder = _BustBuilder(mood)
    _face(builder, head, mood)
    _hair(builder, head, dress)
    _hat(builder, head, dress)
    drop = 0.16 * mood.open
    if dress.beard == "full":
        builder.ball("beard", (0.30, 0, -0.92 * head.length - drop), (0.46, 0.62 * head.width, 0.34))
    elif dress.beard == "goatee":
        builder.ball("beard", (0.58 + head.chin_out, 0, -0.98 * head.length - drop), (0.17, 0.20, 0.24))
    if dress.shades:
        for side in _SIDES:
            lean = turn(yaw=side * 0.28, nod=0.06)
            builder.ball(
                "lens", (0.90 + 0.8 * head.eye_bulge, side * (head.eye_gap + 0.01), 0), (0.05, 0.33, 0.26), lean
            )
    _shoulders(builder, head, dress)
    return Bust(builder.figure(), head)
