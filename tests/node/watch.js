// SPDX-License-Identifier: LGPL-2.1-or-later
// node watch.js WHICH DIR: watch DIR with a library that programs of the Node world use; prints "ready", then a line for each event.
'use strict';
const path = require('path');
const [which, dir] = process.argv.slice(2);
const say = (kind, file) => console.log(`${kind} ${path.relative(dir, file)}`);

const start = {
	chokidar() {
		const w = require('chokidar').watch(dir, { ignoreInitial: true, usePolling: false });
		w.on('all', say).on('ready', () => console.log('ready'));
	},

	async parcel() {
		await require('@parcel/watcher').subscribe(dir, (err, events) => {
			if (err)
				throw err;
			for (const e of events)
				say(e.type, e.path);
		}, { backend: 'inotify' });
		console.log('ready');
	},

	watchpack() {
		const Watchpack = require('watchpack');
		const w = new Watchpack({ aggregateTimeout: 20, poll: false });
		w.on('change', (file, mtime, why) => say(`change-${why}`, file));
		const files = ['hello.txt', 'moved.txt'].map(n => path.join(dir, n));
		let missing = 0; // its first scan ends with telling that these are: what comes before that it takes for old
		w.on('remove', (file, why) => {
			say(`remove-${why}`, file);
			if (++missing === files.length)
				console.log('ready');
		});
		w.watch({ files, directories: [], missing: [], startTime: Date.now() });
	},

	// A development server: what it would tell a browser.
	async vite() {
		const server = await require('vite').createServer({
			root: dir, configFile: false, logLevel: 'error', clearScreen: false, cacheDir: process.argv[4],
			server: { port: 0, host: '127.0.0.1', watch: { usePolling: false } }, optimizeDeps: { noDiscovery: true },
		});
		await server.listen();
		const { port } = server.httpServer.address();
		const send = server.hot.send.bind(server.hot);
		server.hot.send = (...m) => {
			console.log(`tells ${JSON.stringify(m[0])}`);
			send(...m);
		};
		server.watcher.on('all', say);
		const get = async () => (await fetch(`http://127.0.0.1:${port}/main.js`)).text();
		await get();
		server.watcher.on('change', async () => console.log(`serves ${JSON.stringify(await get())}`));
		console.log('ready');
	},
};

Promise.resolve(start[which]()).catch(e => {
	console.error(e);
	process.exit(1);
});
