"""Predict photos with an exported model, without icecore: python infer.py model.onnx photo.jpg …"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

if len(sys.argv) < 3:
    sys.exit(__doc__)
model = json.loads(Path(sys.argv[1]).with_name("model.json").read_text(encoding="utf-8"))
spec, outputs, failed = model["preprocessing"], model["outputs"], []
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
for name in sys.argv[2:]:
    try:
        with Image.open(name) as file:
            image = file.copy()
    except OSError as error:
        failed.append(f"{name}: {error}")
        continue
    turn = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}.get(image.getexif().get(0x0112, 1))  # EXIF to Image.Transpose
    image = image if turn is None else image.transpose(Image.Transpose(turn))
    if image.mode.startswith("I"):  # 16 bits
        image = Image.fromarray((np.asarray(image).astype(np.int64) * 255 // 65535).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:  # over white
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    image, size, resize = image.convert(spec["mode"]), image.size, spec["resize"]
    if resize is not None:  # (height, width), or the shorter side
        sides = resize if isinstance(resize, list) else [int(resize * s / min(size)) for s in size[::-1]]
        image = image.resize((sides[1], sides[0]), Image.Resampling[spec["interpolation"].upper()])
    crop = (spec["crop"] or image.size[::-1])[::-1]  # around the centre; black outside the image
    left, top = (round(max(0, s - c) / 2) - max(0, c - s) // 2 for s, c in zip(image.size, crop, strict=True))
    pixels = np.asarray(image.crop((left, top, left + crop[0], top + crop[1]))).reshape(1, crop[1], crop[0], -1)
    for output, [row] in zip(outputs, session.run([item["name"] for item in outputs], {"pixels": pixels}), strict=True):
        best = np.flatnonzero(row > output["threshold"]) if output["kind"] == "multilabel" else [row.argmax()]
        text = [f"{output['classes'][i]}\t{row[i]:.4f}" for i in best] if output["classes"] else [f"{row[0]:.6g}"]
        print(name, *text, sep="\t")
sys.exit("\n".join(failed) or 0)
