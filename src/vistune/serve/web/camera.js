// A photograph: on a phone its own camera takes it, elsewhere a dialog shows what the camera sees.

import { byId, showDialog, toast } from "./dom.js";
import { encoded } from "./pictures.js";

/** @param {HTMLInputElement} capture the file field that opens a phone's camera @param {(photograph: File) => void} take */
export async function takePhotograph(capture, take) {
  // mediaDevices is missing where the page came neither by https nor from this machine.
  if (matchMedia("(pointer: coarse)").matches || !navigator.mediaDevices?.getUserMedia) return capture.click();
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: 1920 }, facingMode: "environment" } });
  } catch {
    return toast("There is no camera, or this page may not use it.");
  }
  const dialog = byId("camera");
  const video = byId("camera-view");
  video.srcObject = stream;
  const end = () => {
    for (const track of stream.getTracks()) track.stop();
    video.srcObject = null;
    byId("camera-take").onclick = null;
  };
  dialog.addEventListener("close", end, { once: true });
  byId("camera-take").onclick = async () => {
    const canvas = document.createElement("canvas");
    canvas.width = video.videoWidth;
    canvas.height = video.videoHeight;
    if (!canvas.width) return; // not yet seeing
    canvas.getContext("2d")?.drawImage(video, 0, 0);
    const blob = await encoded(canvas, "image/jpeg");
    dialog.close();
    if (blob) take(new File([blob], "photograph.jpg", { type: "image/jpeg" }));
  };
  showDialog(dialog);
  await video.play();
}
