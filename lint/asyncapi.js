// Asks AsyncAPI's own parser about a document, and about what it refers to in other files.
const { Parser, fromFile } = require('@asyncapi/parser');

const rules = { 'asyncapi-latest-version': 'off' };     // why: see .spectral.yaml
fromFile(new Parser({ ruleset: { rules } }), process.argv[2]).parse().then(({ document, diagnostics }) => {
  for (const { range, code, message } of diagnostics)
    console.log(`${process.argv[2]}:${range.start.line + 1}: ${code}: ${message}`);
  console.log(document ? `${document.allMessages().length} messages, ${document.allOperations().length} operations, ${diagnostics.length} findings` : 'not valid');
  process.exitCode = document && !diagnostics.length ? 0 : 1;
});
