// An HTTP API as jco's own users write one: a fetch handler, as in a service worker, which
// `jco componentize` puts with a JavaScript engine into a wasi:http component.

addEventListener('fetch', (event) => event.respondWith(answer(event.request)));

async function answer(request) {
  const { pathname, search } = new URL(request.url);

  if (request.method === 'POST') {
    const type = request.headers.get('content-type') ?? 'application/octet-stream';
    return new Response(request.body, { headers: { 'content-type': type } });
  }

  switch (pathname) {
    case '/hello':
      return new Response('Hello from JavaScript\n', { headers: { 'x-made-with': 'jco' } });
    case '/request':
      return Response.json({
        path: pathname + search,
        'x-forwarded-for': request.headers.get('x-forwarded-for'),
      });
    default:
      return new Response('Nothing here\n', { status: 404 });
  }
}
