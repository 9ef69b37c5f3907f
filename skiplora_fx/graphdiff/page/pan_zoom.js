"use strict";
// Pictures that are panned and zoomed, several of them together.

const READABLE = 0.75; // the smallest scale at which a picture is first shown
const SMALLEST = 0.65; // or this, if all of its width is in sight then

// Returns what can be done with them: fit, show(place), zoomBy(factor), and free, to let go of them.
function panZoomed(pictures, layout) {
  let leading = null;
  const together = [];
  pictures.forEach((element, place) => {
    const follow = () => {
      if (leading !== null || together.length < pictures.length) {
        return;
      }
      leading = together[place];
      for (const other of together.filter((one) => one !== leading)) {
        scaleTo(other, leading.getSizes().realZoom);
        other.pan(leading.getPan());
      }
      leading = null;
    };
    const one = svgPanZoom(element, {
      fit: false,
      center: false,
      minZoom: 0.05,
      maxZoom: 6,
      dblClickZoomEnabled: false,
      zoomScaleSensitivity: 0.3,
      onZoom: follow,
      onPan: follow,
    });
    together.push(one);
  });

  function fit(least = READABLE) {
    const { width, height } = together[0].getSizes();
    const [across, down] = [width / layout.width, height / layout.height];
    const floor = across > SMALLEST ? Math.min(across, least) : least;
    const scale = Math.max(Math.min(across, down, 1.25), floor);
    scaleTo(together[0], scale);
    const [right, below] = [width - layout.width * scale, height - layout.height * scale];
    const centred = width / 2 - scale * middle(layout, height / scale);
    // no room is left free at one edge while boxes are cut off at the other
    const x = right < 0 ? Math.min(Math.max(centred, right), 0) : right / 2;
    together[0].pan({ x, y: Math.max(below / 2, 0) });
  }

  // A place of the layout, at the top.
  function show(place) {
    const { width, realZoom: scale } = together[0].getSizes();
    together[0].pan({ x: width / 2 - scale * place.x, y: 50 - scale * (place.y - place.height / 2) });
  }

  const resized = new ResizeObserver(() => together.forEach((one) => one.resize()));
  pictures.forEach((element) => resized.observe(element.parentElement));
  fit();
  return {
    fit: () => fit(0.05),
    show,
    zoomBy: (factor) => together[0].zoomBy(factor),
    free() {
      resized.disconnect();
      together.forEach((one) => one.destroy());
    },
  };
}

// The library's zoom is relative to the scale at which it last measured the picture.
function scaleTo(one, scale) {
  one.zoom((one.getZoom() * scale) / one.getSizes().realZoom);
}

// Where most boxes are, from left to right, of those in the part at the top that is as high as this.
function middle(layout, height) {
  const top = [...layout.boxes.values()].filter((place) => place.y < height);
  const all = top.map((place) => place.x).sort((a, b) => a - b);
  return all[all.length >> 1] ?? layout.width / 2;
}
