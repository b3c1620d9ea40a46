"""A generated shop for `make demo`: small, the same on every machine, and with texts that know more than the clicks.

Products have a topic, a step inside it (tent, then sleeping bag, then stove ...), a brand and a style; all four stand in
the title, none in the id. Shoppers keep to a brand and a style and walk from step to step. Clicks are few and most
products rare, so a model of ids alone learns the walk slowly while one that reads titles sees it. Half a second, 1 MB.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import pyarrow as pa

from cache.atomic import staging
from cache.errors import UsageError
from cache.tables import write_table

__all__ = ["MOST_ITEMS", "MOST_USERS", "write_sample"]

MOST_USERS = MOST_ITEMS = 10_000_000  #: all are held in memory

#: topic -> department, brands, steps in the order shoppers take them (category: two wordings of the product)
_TOPICS: dict[str, tuple[str, tuple[str, ...], dict[str, tuple[str, str]]]] = {
    "Camping": (
        "Sports & Outdoors",
        ("Ridgeline", "Northfell", "Campwright", "Tarn & Co", "Wildhaven"),
        {
            "Tents": ("Two Person Tent", "Dome Tent with Rainfly"),
            "Sleeping Bags": ("Mummy Sleeping Bag", "Three Season Sleeping Bag"),
            "Sleeping Pads": ("Self Inflating Sleeping Pad", "Foam Camping Mattress"),
            "Camp Stoves": ("Gas Camp Stove", "Backpacking Burner"),
            "Camp Cookware": ("Camping Pot and Pan Set", "Nesting Mess Kit"),
            "Lanterns": ("Rechargeable Camping Lantern", "Hanging Tent Light"),
            "Water Filters": ("Portable Water Filter", "Trail Water Purifier"),
            "Coolers": ("Insulated Cooler Box", "Soft Sided Ice Chest"),
        },
    ),
    "Baking": (
        "Home & Kitchen",
        ("Hearthstone", "Crumb & Crust", "Bakewell Lane", "Floura", "Ovenbird"),
        {
            "Mixing Bowls": ("Mixing Bowl Set", "Nesting Bowls with Lids"),
            "Measuring Tools": ("Measuring Cups and Spoons", "Kitchen Scale for Flour"),
            "Rolling Pins": ("Rolling Pin", "Pastry Roller with Rings"),
            "Cake Pans": ("Springform Cake Pan", "Round Layer Cake Tin"),
            "Bread Tins": ("Loaf Pan for Bread", "Dutch Oven Bread Baker"),
            "Cooling Racks": ("Wire Cooling Rack", "Stackable Baking Rack"),
            "Piping Tips": ("Icing Piping Tips Kit", "Frosting Nozzles and Bags"),
            "Cake Stands": ("Cake Stand with Dome", "Rotating Cake Turntable"),
        },
    ),
    "Guitar": (
        "Musical Instruments",
        ("Fretwell", "Amberline", "Sixth String", "Hollowbody", "Tonewood"),
        {
            "Guitars": ("Acoustic Guitar", "Electric Guitar Solid Body"),
            "Strings": ("Guitar String Set", "Light Gauge Strings"),
            "Picks": ("Guitar Picks Variety Pack", "Plectrum Tin"),
            "Tuners": ("Clip On Guitar Tuner", "Chromatic Pedal Tuner"),
            "Straps": ("Guitar Strap", "Padded Shoulder Strap for Bass and Guitar"),
            "Stands": ("Folding Guitar Stand", "Wall Mount Guitar Hanger"),
            "Amplifiers": ("Practice Guitar Amplifier", "Combo Tube Amp"),
            "Effects": ("Overdrive Effect Pedal", "Delay and Reverb Pedal"),
        },
    ),
    "Dogs": (
        "Pet Supplies",
        ("Waggly", "Barkwood", "Pawfield", "Houndsley", "Fetchers"),
        {
            "Dog Crates": ("Folding Dog Crate", "Puppy Kennel"),
            "Dog Beds": ("Orthopedic Dog Bed", "Plush Pet Cushion"),
            "Dog Bowls": ("No Spill Dog Bowl", "Elevated Pet Feeder"),
            "Collars": ("Adjustable Dog Collar", "Reflective Puppy Collar"),
            "Leashes": ("Retractable Dog Leash", "Rope Dog Lead"),
            "Chew Toys": ("Squeaky Chew Toy", "Tug Rope for Dogs"),
            "Grooming": ("Deshedding Dog Brush", "Pet Nail Clippers"),
            "Training Treats": ("Chicken Training Treats", "Grain Free Dog Biscuits"),
        },
    ),
    "Cycling": (
        "Sports & Outdoors",
        ("Velocrest", "Spokeline", "Pedalworks", "Gravelo", "Chainring"),
        {
            "Helmets": ("Bike Helmet", "Cycling Helmet with Visor"),
            "Bike Lights": ("Front and Rear Bike Light", "Handlebar Headlight"),
            "Bike Locks": ("U Lock for Bicycles", "Folding Bike Lock"),
            "Saddles": ("Gel Bike Saddle", "Bicycle Seat Cushion"),
            "Bike Pumps": ("Floor Bike Pump", "Mini Tire Inflator"),
            "Repair Kits": ("Puncture Repair Kit", "Bicycle Multi Tool"),
            "Panniers": ("Rear Rack Pannier Bag", "Handlebar Bag"),
            "Cycling Gloves": ("Padded Cycling Gloves", "Fingerless Bike Gloves"),
        },
    ),
    "Gardening": (
        "Patio, Lawn & Garden",
        ("Greenacre", "Thistledown", "Loam & Leaf", "Sprigwell", "Orchardman"),
        {
            "Raised Beds": ("Raised Garden Bed", "Elevated Planter Box"),
            "Potting Soil": ("Organic Potting Mix", "Compost Soil Bag"),
            "Seeds": ("Vegetable Seed Collection", "Herb Seeds Packets"),
            "Hand Tools": ("Garden Trowel Set", "Weeding Fork"),
            "Watering": ("Watering Can", "Expandable Garden Hose"),
            "Pruners": ("Bypass Pruning Shears", "Hedge Clippers"),
            "Plant Supports": ("Tomato Cages", "Trellis for Climbing Plants"),
            "Pest Control": ("Neem Oil Insect Spray", "Slug and Snail Barrier"),
        },
    ),
    "Nursery": (
        "Baby Products",
        ("Lullabee", "Snugglewood", "Tiny Acorn", "Moonmilk", "Cradlefield"),
        {
            "Cribs": ("Convertible Crib", "Bedside Bassinet"),
            "Crib Bedding": ("Fitted Crib Sheet", "Quilted Baby Blanket"),
            "Swaddles": ("Swaddle Wrap for Newborns", "Muslin Sleep Sack"),
            "Baby Monitors": ("Video Baby Monitor", "Audio Nursery Monitor"),
            "Bottles": ("Anti Colic Baby Bottles", "Bottle Warmer"),
            "Bibs": ("Silicone Baby Bib", "Drool Bibs"),
            "High Chairs": ("Folding High Chair", "Booster Seat with Tray"),
            "Sippy Cups": ("Spill Proof Sippy Cup", "Toddler Straw Cup"),
        },
    ),
    "Photography": (
        "Electronics",
        ("Lumigraph", "Aperion", "Shutterby", "Focalis", "Darkroom No 5"),
        {
            "Cameras": ("Mirrorless Digital Camera", "Instant Film Camera"),
            "Lenses": ("Prime Camera Lens", "Telephoto Zoom Lens"),
            "Memory Cards": ("High Speed SD Memory Card", "Card Reader for Cameras"),
            "Camera Batteries": ("Replacement Camera Battery", "Dual Battery Charger"),
            "Tripods": ("Travel Tripod", "Tabletop Camera Stand"),
            "Camera Bags": ("Camera Shoulder Bag", "Photo Backpack"),
            "Lens Filters": ("Polarizing Lens Filter", "Neutral Density Filter Kit"),
            "Studio Lighting": ("Softbox Lighting Kit", "Ring Light with Stand"),
        },
    ),
    "Woodworking": (
        "Tools & Home Improvement",
        ("Oakhammer", "Dovetail Bros", "Sawtooth", "Millwright", "Burl & Beam"),
        {
            "Workbenches": ("Folding Workbench", "Sawhorse Pair"),
            "Saws": ("Japanese Pull Saw", "Cordless Circular Saw"),
            "Chisels": ("Bench Chisel Set", "Wood Carving Knives"),
            "Clamps": ("Bar Clamps", "Quick Grip Wood Clamp"),
            "Drill Bits": ("Brad Point Drill Bits", "Countersink Bit Set"),
            "Sanding": ("Random Orbital Sander", "Assorted Sandpaper Sheets"),
            "Wood Glue": ("Carpenter Wood Glue", "Epoxy Resin for Wood"),
            "Wood Finishes": ("Danish Oil Wood Finish", "Clear Polyurethane Varnish"),
        },
    ),
    "Skin Care": (
        "Beauty & Personal Care",
        ("Dewberry", "Aloeva", "Petal & Pine", "Clearwell", "Honeymist"),
        {
            "Cleansers": ("Foaming Face Cleanser", "Micellar Makeup Remover"),
            "Toners": ("Witch Hazel Toner", "Rose Water Facial Mist"),
            "Serums": ("Vitamin C Face Serum", "Hyaluronic Acid Drops"),
            "Moisturizers": ("Daily Face Moisturizer", "Overnight Hydrating Cream"),
            "Eye Creams": ("Under Eye Cream", "Cooling Eye Gel Patches"),
            "Sunscreens": ("Mineral Face Sunscreen", "Tinted Sun Lotion"),
            "Face Masks": ("Clay Face Mask", "Sheet Mask Pack"),
            "Lip Care": ("Lip Balm Stick", "Overnight Lip Mask"),
        },
    ),
    "Home Office": (
        "Office Products",
        ("Deskworth", "Inkling", "Papermoor", "Quillon", "Foliant"),
        {
            "Desks": ("Standing Desk", "Writing Desk with Drawers"),
            "Office Chairs": ("Ergonomic Office Chair", "Mesh Swivel Chair"),
            "Monitor Arms": ("Monitor Arm Mount", "Laptop Riser"),
            "Keyboards": ("Wireless Keyboard", "Mechanical Keyboard"),
            "Desk Lamps": ("LED Desk Lamp", "Clip On Reading Light"),
            "Notebooks": ("Hardcover Dotted Notebook", "Spiral Ruled Journal"),
            "Pens": ("Gel Ink Pens", "Refillable Fountain Pen"),
            "Desk Organizers": ("Desk Drawer Organizer", "File Folder Rack"),
        },
    ),
    "Fishing": (
        "Sports & Outdoors",
        ("Riverbend", "Anglecroft", "Deepwater Jack", "Casterly", "Minnow & Pike"),
        {
            "Fishing Rods": ("Spinning Fishing Rod", "Telescopic Travel Rod"),
            "Reels": ("Baitcasting Reel", "Spinning Reel"),
            "Fishing Line": ("Braided Fishing Line", "Fluorocarbon Leader Line"),
            "Lures": ("Crankbait Lures", "Soft Plastic Worms"),
            "Hooks": ("Circle Hooks Assortment", "Jig Heads"),
            "Tackle Boxes": ("Tackle Box", "Fishing Tackle Backpack"),
            "Landing Nets": ("Folding Landing Net", "Rubber Mesh Fishing Net"),
            "Waders": ("Breathable Chest Waders", "Neoprene Wading Boots"),
        },
    ),
}  # fmt: skip
_STYLES = {
    "ultralight": ("Ultralight", "Featherweight Slim", "Compact Travel Size"),
    "rugged": ("Heavy Duty", "Rugged Industrial Grade", "Reinforced Professional"),
    "retro": ("Vintage Style", "Retro Classic", "Antique Heritage"),
    "eco": ("Eco Friendly Bamboo", "Recycled Sustainable", "Natural Organic"),
    "kids": ("Kids Rainbow", "Cartoon Animal Design for Children", "Junior Beginner"),
    "luxury": ("Luxury Gold Trim", "Premium Designer", "Deluxe Gift Edition"),
}
_DETAILS = ("Black", "Forest Green", "Navy Blue", "Red", "Grey", "Sand", "Teal", "White")

_MIN_EVENTS, _MEAN_MORE, _MAX_EVENTS = 5, 2.0, 20
_P_OTHER_TOPIC, _P_SAME_STEP, _P_NEXT_STEP = 0.08, 0.22, 0.45  # the rest: any step of the topic
_SAME_BRAND, _SAME_STYLE = 20.0, 20.0  # how many times likelier a product of the shopper's own is
_POPULARITY_SPREAD = 0.7
_FIRST_SECOND = 1_514_764_800  # 2018-01-01
_DAY = 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class _Product:
    item: str
    topic: int
    step: int
    brand: str
    style: str
    title: str
    category: str
    popularity: float


def write_sample(out_dir: Path, *, users: int = 3000, items: int = 1600, seed: int = 7) -> None:
    """Write interactions.parquet (user, item, timestamp) and items.parquet (item, title, brand, category).

    Args:
        out_dir: the folder to make; `kd-cache ingest` takes it as it is.
        users: shoppers, each with at least five interactions.
        items: products; at least one for each of the steps.
        seed: the same seed gives the same bytes.

    Raises:
        UsageError: too few users or items, or too many.
        StoreError: `out_dir` is there already.
    """
    steps = sum(len(steps) for _, _, steps in _TOPICS.values())
    if users < 1 or items < steps:
        raise UsageError(
            f"sample of {users} users and {items} items: at least 1 and {steps} were expected.",
            code="sample.too_small",
        )
    if users > MOST_USERS or items > MOST_ITEMS:
        raise UsageError(
            f"sample of {users} users and {items} items: at most {MOST_USERS} and {MOST_ITEMS} were expected.",
            code="sample.too_large",
        )
    rng = random.Random(seed)
    products = _products(items, rng)
    shelves: dict[tuple[int, int], list[_Product]] = {}
    for product in products:
        shelves.setdefault((product.topic, product.step), []).append(product)
    rows: list[tuple[str, str, int]] = []
    for number in range(users):
        user = f"U{number:06d}"
        moment = _FIRST_SECOND + rng.randrange(300 * _DAY)
        for product in _walk(shelves, rng):
            rows.append((user, product.item, moment))
            moment += 60 + rng.randrange(9 * _DAY)
    rows.sort(key=lambda row: (row[2], row[0]))  # as a log would have them
    with staging(out_dir) as folder:
        write_table(
            folder / "interactions.parquet",
            pa.table(
                [pa.array(column) for column in zip(*rows, strict=True)],
                names=["user", "item", "timestamp"],
            ),
        )
        write_table(
            folder / "items.parquet",
            pa.table(
                {
                    name: pa.array([getattr(product, name) for product in products])
                    for name in ("item", "title", "brand", "category")
                }
            ),
        )


def _products(count: int, rng: random.Random) -> list[_Product]:
    """`count` products, spread evenly over the steps; ids say nothing about them."""
    steps = [
        (topic, step)
        for topic, (_, _, steps) in enumerate(_TOPICS.values())
        for step in range(len(steps))
    ]
    ids = rng.sample(range(36**6), count)
    products = []
    for number in range(count):
        topic, step = steps[number % len(steps)]
        name, (department, brands, wordings) = list(_TOPICS.items())[topic]
        category, nouns = list(wordings.items())[step]
        brand = brands[rng.randrange(len(brands))]
        style = list(_STYLES)[rng.randrange(len(_STYLES))]
        adjective = _STYLES[style][rng.randrange(len(_STYLES[style]))]
        noun = nouns[rng.randrange(len(nouns))]
        detail = _DETAILS[rng.randrange(len(_DETAILS))]
        products.append(
            _Product(
                item=f"B00{_base36(ids[number])}",
                topic=topic,
                step=step,
                brand=brand,
                style=style,
                title=f"{brand} {adjective} {noun}, {detail}",
                category=f"{department} {name} {category}",
                popularity=math.exp(_POPULARITY_SPREAD * _normal(rng)),
            )
        )
    return products


def _walk(shelves: dict[tuple[int, int], list[_Product]], rng: random.Random) -> list[_Product]:
    """What one shopper takes, in order; nothing twice."""
    topics = list(_TOPICS.values())
    more = int(-math.log(1.0 - rng.random()) * _MEAN_MORE)
    length = min(_MIN_EVENTS + more, _MAX_EVENTS)
    style = list(_STYLES)[rng.randrange(len(_STYLES))]
    topic, step, brand = _enter(rng)
    taken: list[_Product] = []
    while len(taken) < length:
        choice = rng.random()
        if choice < _P_OTHER_TOPIC:
            topic, step, brand = _enter(rng)
        elif choice < _P_OTHER_TOPIC + _P_NEXT_STEP:
            step = (step + 1) % len(topics[topic][2])
        elif choice > _P_OTHER_TOPIC + _P_NEXT_STEP + _P_SAME_STEP:
            step = rng.randrange(len(topics[topic][2]))
        shelf = [product for product in shelves[topic, step] if product not in taken]
        if shelf:
            taken.append(_pick(shelf, brand, style, rng))
    return taken


def _enter(rng: random.Random) -> tuple[int, int, str]:
    """A topic, a step of it, and the brand the shopper will prefer there."""
    topic = rng.randrange(len(_TOPICS))
    _, brands, steps = list(_TOPICS.values())[topic]
    return topic, rng.randrange(len(steps)), brands[rng.randrange(len(brands))]


def _pick(shelf: list[_Product], brand: str, style: str, rng: random.Random) -> _Product:
    weights = [
        product.popularity
        * (_SAME_BRAND if product.brand == brand else 1.0)
        * (_SAME_STYLE if product.style == style else 1.0)
        for product in shelf
    ]
    mark = rng.random() * math.fsum(weights)
    sums = accumulate(weights)
    return next((p for p, top in zip(shelf, sums, strict=True) if mark < top), shelf[-1])


def _normal(rng: random.Random) -> float:
    """Box and Muller's, since only `random()` is promised to be the same in every Python."""
    return math.sqrt(-2.0 * math.log(1.0 - rng.random())) * math.cos(math.tau * rng.random())


def _base36(number: int) -> str:
    digits = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    text = ""
    for _ in range(6):
        number, digit = divmod(number, 36)
        text = digits[digit] + text
    return text
