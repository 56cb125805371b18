"""The routes of the prediction server: an image comes in, its label map goes out.

The server keeps no state: nothing of a request is written anywhere. .docs/serving.md describes
every address.
"""

import asyncio
import math
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

import diffseg_jax
from diffseg_jax.errors import UserError, visible
from diffseg_jax.inference.prediction import Prediction
from diffseg_jax.server.predict_formats import CONTENT_TYPES, MAPS_OF_FORMAT, encoded
from diffseg_jax.server.predict_query import QUERY_OPTIONS, read_query
from diffseg_jax.server.request_batches import RequestBatches
from diffseg_jax.server.request_image import image_in, image_of_form
from diffseg_jax.server.security import RequestRefused, json_response, read_body
from diffseg_jax.server.served_network import MAX_PASSES, Kind, ServedNetwork

CLOSED_REQUEST = 499  # a status that nobody receives: the client is gone
FILES_AT_ONCE = 2  # image files that are decoded or encoded at the same time
LONGEST_RETRY = 120  # seconds, the largest Retry-After
BODY = "an image with its type, such as image/jpeg, or a form: curl -F image=@photo.jpg"
USAGE = """diffseg_jax {version}: {system} network of {classes} classes

POST /predict    an image; the response is its label map
    curl --data-binary @photo.jpg -H 'Content-Type: image/jpeg' {url}/predict -o labels.png
    curl -F image=@photo.jpg '{url}/predict?format=json'
    format=png (class ids), json or probs; {options}
GET  /metadata   classes, colours and limits, as JSON
GET  /health     whether the first program is compiled, as JSON
{token}"""
TOKEN_NEEDED = "\nEvery request needs the token: -H 'Authorization: Bearer TOKEN'\n"


@dataclass(frozen=True)
class Limits:
    """What the server takes.

    pixels       of an image;  bytes  of a request
    probs        numbers in a response with probabilities: pixels x classes
    requests     that are received, wait or are predicted at the same time
    seconds      for receiving a request, and for predicting it
    wait         seconds that a request waits for others that may share its batch
    """

    pixels: int = 2**24
    bytes: int = 32 * 10**6
    probs: int = 2**26
    requests: int = 32
    seconds: float = 60.0
    wait: float = 0.005


class PredictApp:
    """The routes, to be put behind `security.Guarded`, and the batches of the requests.

    `warm` is the future of the first prediction, of an image of the trained size.
    """

    def __init__(self, network: ServedNetwork, limits: Limits, url: str = "", token: bool = False):
        """url: the address of the server for its usage; token: whether requests need one."""
        self.network, self.limits = network, limits
        self.url, self.token = url, token
        self.busy = 0  # requests between the check of the queue and their response
        self.batches = RequestBatches(network.predict, network.batch_size, limits.wait)
        self.files = ThreadPoolExecutor(FILES_AT_ONCE, "files")  # image files, read and written
        self.warm = self._warmed_up()
        self.routes = [
            Route("/", self._usage), Route("/health", self._health),
            Route("/metadata", self._metadata), Route("/predict", self._predict, methods=["POST"]),
        ]  # fmt: skip

    def close(self, seconds: float | None = None):
        """Finishes the predictions that wait, for at most `seconds`."""
        self.batches.close(seconds)
        self.files.shutdown(wait=False)

    # ---- about the server ------------------------------------------------------------------------

    def _warmed_up(self) -> Future:
        """Predicts one grey image of the trained size, which compiles the first program."""
        size = self.network.segmenter.crop
        kind = Kind(size, self.network.options())
        return self.batches.submit(kind, np.full((*size, 3), 128, np.uint8))

    async def _usage(self, request):
        segmenter = self.network.segmenter
        text = USAGE.format(
            version=diffseg_jax.__version__, system=segmenter.system, url=self.url,
            classes=len(segmenter.names), options=", ".join((*QUERY_OPTIONS, "uncertainty=True")),
            token=TOKEN_NEEDED if self.token else "",
        )  # fmt: skip
        return Response(text, media_type="text/plain")

    async def _health(self, request):
        ready = self.warm.done() and not self.warm.exception()
        status = "ok" if ready else "failed" if self.warm.done() else "starting"
        return json_response({"status": status, "ready": ready, "waiting": len(self.batches)})

    async def _metadata(self, request):
        network, limits, segmenter = self.network, self.limits, self.network.segmenter
        classes = zip(segmenter.names, segmenter.palette)
        return json_response({
            "version": diffseg_jax.__version__, "system": segmenter.system,
            "stage": segmenter.meta["stage"], "step": segmenter.step,
            "classes": [
                {"id": number, "name": name, "colour": list(colour)}
                for number, (name, colour) in enumerate(classes)
            ],
            "trained_size": segmenter.trained_size, "calibrated": segmenter.calibrator is not None,
            "formats": list(CONTENT_TYPES), "options": [*QUERY_OPTIONS, "uncertainty"],
            "batch_size": network.batch_size, "round_to": network.round_to or 1,
            "limits": {
                "pixels": limits.pixels, "bytes": limits.bytes, "probs": limits.probs,
                "passes": MAX_PASSES, "requests": limits.requests, "seconds": limits.seconds,
                "sizes": network.most_sizes,
            },
        })  # fmt: skip

    # ---- predictions -----------------------------------------------------------------------------

    async def _predict(self, request):
        wanted = read_query(request.query_params.multi_items(), self.network)
        if self.busy >= self.limits.requests:
            return self._later(f"{self.busy} requests are waiting already.")
        self.busy += 1
        try:
            content = await self._content(request)
            image = await self._in_thread(image_in, content, self.limits.pixels)
            kind = Kind(image.shape[:2], wanted.options, MAPS_OF_FORMAT[wanted.format])
            self._require_small(kind)
            future = self.batches.submit(kind, image)
            del content, image  # which the batch holds as long as it needs them
            prediction = await self._result(future, request)
            if prediction is None:
                return self._later(f"no prediction within {self.limits.seconds:g} seconds.")
            body, headers = await self._in_thread(
                encoded, prediction, wanted.format, wanted.uncertainty
            )
            return Response(body, headers=headers)
        except ClientDisconnect:
            return Response(status_code=CLOSED_REQUEST)
        finally:
            self.busy -= 1

    async def _in_thread(self, function, *arguments):
        """The result of a function, beside which other requests go on."""
        return await asyncio.get_running_loop().run_in_executor(self.files, function, *arguments)

    def _later(self, sentence) -> Response:
        """503 with the seconds after which those that wait will probably be done."""
        batches = (len(self.batches) + 1) / self.network.batch_size
        seconds = min(max(math.ceil(batches * self.batches.seconds), 1), LONGEST_RETRY)
        response = json_response({"error": f"{sentence} Try again in {seconds} s."}, 503)
        response.headers["retry-after"] = str(seconds)
        return response

    def _require_small(self, kind):
        """RequestRefused with 422 for an image that is too much work with these options."""
        self.network.require_size(kind, self.limits.pixels)
        classes = max(len(self.network.segmenter.names), 1)
        if "probs" in kind.keep and math.prod(kind.size) * classes > self.limits.probs:
            most = self.limits.probs // classes
            raise UserError(
                f"format=probs takes at most {most:,} pixels at {classes} classes, but the image "
                f"is {kind.size[1]}x{kind.size[0]}. Send a smaller one, or take another format."
            )

    async def _content(self, request) -> bytes:
        """The bytes of the image of a request."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        is_form = kind == "multipart/form-data"
        if not (is_form or kind.startswith("image/") or kind == "application/octet-stream"):
            given = f"Content-Type is {visible(kind[:100])}" if kind else "there is no Content-Type"
            raise RequestRefused(415, f"{given}. Send {BODY}.")
        try:
            async with asyncio.timeout(self.limits.seconds):
                body = await read_body(request, self.limits.bytes)
        except TimeoutError:
            seconds = self.limits.seconds
            raise RequestRefused(
                408, f"the body did not arrive within {seconds:g} seconds."
            ) from None
        content = await image_of_form(request, body) if is_form else body
        if not content:
            raise RequestRefused(
                400, f"there is no image. Send {BODY} image: curl -F image=@photo.jpg"
            )
        return content

    async def _result(self, future: Future, request: Request) -> Prediction | None:
        """The prediction; None if it takes too long. ClientDisconnect if nobody waits for it."""
        result = asyncio.wrap_future(future)
        gone = asyncio.ensure_future(_disconnected(request))
        try:
            await asyncio.wait(
                {result, gone}, timeout=self.limits.seconds, return_when=asyncio.FIRST_COMPLETED
            )
            if result.done():
                return result.result()
            if gone.done():
                raise ClientDisconnect
            return None
        finally:
            result.cancel()  # takes the request out of the queue, if it is still there
            gone.cancel()


async def _disconnected(request):
    """Returns when the client has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
