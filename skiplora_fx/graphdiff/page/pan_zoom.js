"use strict";
// Pictures that are panned and zoomed, several of them together.

const READABLE = 0.75; // the smallest scale at which a picture is first shown

// Returns {fit, free}: show all of it, as far as it can be read; and let go of it.
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
        other.zoom(leading.getZoom());
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
    const scale = Math.max(Math.min(width / layout.width, height / layout.height, 1.25), least);
    together[0].zoom(scale);
    const free = height - layout.height * scale;
    together[0].pan({ x: (width - layout.width * scale) / 2, y: Math.max(free / 2, 0) });
  }

  const resized = new ResizeObserver(() => together.forEach((one) => one.resize()));
  pictures.forEach((element) => resized.observe(element.parentElement));
  fit();
  return {
    fit: () => fit(0.05),
    zoomBy: (factor) => together[0].zoomBy(factor),
    free() {
      resized.disconnect();
      together.forEach((one) => one.destroy());
    },
  };
}
