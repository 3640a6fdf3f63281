// Deferred, so the page and the bundle are there. Nothing here asks any other host: validatorUrl is null because
// its default would send the document's address away.
// The page's address may hold user:password@, which fetch refuses.
const description = new URL("openapi.yaml", location.href);
description.username = description.password = "";

window.ui = SwaggerUIBundle({
  url: description.href,
  dom_id: "#swagger-ui",
  presets: [SwaggerUIBundle.presets.apis],
  layout: "BaseLayout",
  validatorUrl: null,
  deepLinking: true,
  tryItOutEnabled: true,
  persistAuthorization: false,
});

// The style sheet has a dark mode, for whoever says that it is wanted.
const dark = matchMedia("(prefers-color-scheme: dark)");
const follow = () => document.documentElement.classList.toggle("dark-mode", dark.matches);
dark.addEventListener("change", follow);
follow();
