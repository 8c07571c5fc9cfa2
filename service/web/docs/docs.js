// Shows the service's OpenAPI document in Swagger UI. Addresses are relative, because the service may have a prefix.

/* global SwaggerUIBundle */
SwaggerUIBundle({
  dom_id: "#docs",
  url: "openapi.json",
  deepLinking: true,
  validatorUrl: null, // the default is a service on the internet
});
