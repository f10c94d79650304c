<?php

declare(strict_types=1);

namespace apachews\Tests;

use apachews\Client;
use apachews\Delivery;
use apachews\Event;
use apachews\EventType;
use apachews\Exception\InvalidArgument;
use apachews\Exception\NoClient;
use apachews\Exception\NotAsked;
use apachews\Exception\NotListening;
use apachews\Exception\PublishFailed;
use apachews\Server;
use apachews\Transport\EpollPoller;
use apachews\Transport\Loop;
use apachews\Transport\Poller;
use apachews\Transport\SelectPoller;
use apachews\Wire\Close;
use apachews\Wire\Frame;
use PHPUnit\Framework\Attributes\DataProvider;
use PHPUnit\Framework\TestCase;

/**
 * The server with each poller, against simulated bridges.
 */
final class ServerTest extends TestCase
{
    private Directory $directory;
    private ?Server $server = null;
    /** @var list<string> */
    private array $logged = [];

    /**
     * @return array<string, array{class-string<Poller>}>
     */
    public static function pollers(): array
    {
        return ['select' => [SelectPoller::class], 'epoll' => [EpollPoller::class]];
    }

    protected function setUp(): void
    {
        $this->directory = new Directory();
    }

    protected function tearDown(): void
    {
        $this->server?->close();
        $this->server = null;
    }

    /**
     * @param class-string<Poller> $poller
     */
    private function server(string $poller = SelectPoller::class, mixed ...$settings): Server
    {
        if ($poller !== SelectPoller::class && !$poller::isAvailable()) {
            self::markTestSkipped("$poller: this PHP has no such extension, or does not allow it");
        }
        return $this->server = new Server(
            "{$this->directory->path}/it.ws",
            ...$settings,
            poller: new $poller(),
            log: function (string $line): void {
                $this->logged[] = $line;
            }
        );
    }

    /**
     * @param array<string, mixed> $open
     *
     * @return array{Bridge, Client}
     */
    private function connect(array $open = []): array
    {
        assert($this->server !== null);
        $bridge = new Bridge($this->server->path, $open);
        return [$bridge, $this->next(EventType::Accept)->getClient()];
    }

    /**
     * Runs the server, which must return no event, until a condition is true.
     *
     * @param \Closure(): bool $isSo
     */
    private function turnUntil(\Closure $isSo): void
    {
        $deadline = hrtime(true) + Bridge::DEADLINE_S * 1e9;
        while (!$isSo()) {
            self::assertLessThan($deadline, hrtime(true), 'not in time');
            self::assertSame(ApacheWSNoData, $this->server?->dequeue(0.01)?->type());
        }
    }

    private function next(EventType $type): Event
    {
        assert($this->server !== null);
        $event = $this->server->dequeue(Bridge::DEADLINE_S);
        self::assertNotNull($event, 'the server is closed');
        self::assertSame($type, $event->type(), $event->reason);
        return $event;
    }

    /**
     * @dataProvider pollers
     *
     * @param class-string<Poller> $poller
     */
    #[DataProvider('pollers')]
    public function testMessagesKeepTheirTypeInBothDirections(string $poller): void
    {
        $this->server($poller);
        [$bridge, $client] = $this->connect();
        foreach ([[Frame::TEXT, 'grüße'], [Frame::BINARY, 'plain'], [Frame::BINARY, "\0\xff"]] as [$opcode, $data]) {
            $bridge->send($opcode, $data);
            $event = $this->next(EventType::IO);
            self::assertSame($data, $event->read());
            self::assertSame($data, $event->read());
            self::assertSame($opcode === Frame::BINARY, $event->isBinary());
            self::assertSame($client, $event->getClient());
            self::assertTrue($event->write($data));
            self::assertSame([Frame::FIN | $opcode, $data], $bridge->readFrame());
            self::assertTrue($event->respond('as text', binary: false));
            self::assertSame('as text', $bridge->readText());
        }
        self::assertTrue($client->send("\xff"));
        self::assertSame([Frame::FIN | Frame::BINARY, "\xff"], $bridge->readFrame());
        self::assertTrue($client->send('x', binary: true));
        self::assertSame([Frame::FIN | Frame::BINARY, 'x'], $bridge->readFrame());
    }

    public function testTextThatIsNotUtf8IsRejected(): void
    {
        $this->server();
        [$bridge] = $this->connect();
        $bridge->send(Frame::TEXT, 'text');
        $event = $this->next(EventType::IO);
        $this->expectException(InvalidArgument::class);
        $event->write("\xff");
    }

    /**
     * @dataProvider pollers
     *
     * @param class-string<Poller> $poller
     */
    #[DataProvider('pollers')]
    public function testTimeoutGivesNoDataWithoutAClient(string $poller): void
    {
        $server = $this->server($poller);
        $begun = hrtime(true);
        $event = $server->dequeue(0.05);
        self::assertNotNull($event);
        self::assertSame(ApacheWSNoData, $event->type());
        self::assertSame(ApacheWSNoData, $event->read());
        self::assertFalse($event->hasClient());
        self::assertGreaterThanOrEqual(0.05, (hrtime(true) - $begun) / 1e9);
        $event->close();
        $this->expectException(NoClient::class);
        $event->write('without a client');
    }

    public function testEmptyMessageIsNoDataOfItsClient(): void
    {
        $this->server();
        [$bridge, $client] = $this->connect();
        $bridge->send(Frame::BINARY, '');
        $event = $this->next(EventType::NoData);
        self::assertSame($client, $event->getClient());
        self::assertSame('', $event->read());
        self::assertTrue($event->isBinary());
    }

    public function testInvalidTimeoutIsRejected(): void
    {
        $this->server();
        foreach ([-1.0, NAN] as $timeout) {
            try {
                $this->server?->dequeue($timeout);
                self::fail('it was taken');
            } catch (InvalidArgument $error) {
                self::assertStringContainsString('timeout', $error->getMessage());
            }
        }
    }

    public function testRequestIsReported(): void
    {
        $this->server();
        [, $client] = $this->connect([
            'id' => 'a-name',
            'request' => [
                'method' => 'GET',
                'uri' => '/ch%C3%A4t.ws?room=1&room=a+b&a.b=%26&flag',
                'headers' => [['cookie', 'session="f00"; x=1; session=bar'], ['origin', 'https://example.org']],
            ],
            'scheme' => 'wss',
            'tls' => [
                'version' => 'TLSv1.3',
                'cipher' => 'TLS_AES_256_GCM_SHA384',
                'server_name' => 'example.org',
                'client_subject' => null,
            ],
            'user' => 'ann',
            'env' => ['A' => 'b'],
            'resumed' => true,
        ]);
        $request = $client->request;
        self::assertSame('a-name', $client->guid());
        self::assertSame('/chät.ws', $request->path);
        self::assertSame(['room' => ['1', 'a b'], 'a.b' => ['&'], 'flag' => ['']], $request->query);
        self::assertSame(['session' => 'f00', 'x' => '1'], $request->cookies);
        self::assertSame('https://example.org', $request->header('Origin'));
        self::assertNull($request->header('accept'));
        self::assertSame(['ann', 'wss', 'example.org'], [$request->user, $request->scheme, $request->vhost]);
        self::assertSame(['203.0.113.7', 51514], $request->remote);
        self::assertSame('TLSv1.3', $request->tls?->version);
        self::assertSame(['A' => 'b'], $request->env);
        self::assertTrue($request->resumed);
        self::assertNull($request->rewrittenQuery);
    }

    public function testTheQueryOfARewritingRuleIsReported(): void
    {
        $this->server();
        $line = ['method' => 'GET', 'uri' => '/chat.ws?room=1', 'headers' => []];
        $rewritten = $this->connect(['request' => $line + ['query' => 'room=7']]);
        $removed = $this->connect(['request' => $line + ['query' => '']]);
        self::assertSame(['room' => ['7']], $rewritten[1]->request->query);
        self::assertSame('/chat.ws?room=1', $rewritten[1]->request->uri);
        self::assertSame([], $removed[1]->request->query);
    }

    /**
     * @dataProvider pollers
     *
     * @param class-string<Poller> $poller
     */
    #[DataProvider('pollers')]
    public function testCloseOfTheClientIsReportedWithCodeAndReason(string $poller): void
    {
        $server = $this->server($poller);
        [$bridge, $client] = $this->connect();
        $bridge->sendClose(4001, 'bye');
        foreach ([EventType::Close, EventType::ConnectionClosed] as $type) {
            $event = $this->next($type);
            self::assertSame([4001, 'bye'], [$event->code, $event->reason]);
            self::assertSame(ApacheWSConnectionClosed, $event->read());
            self::assertSame($client, $event->getClient());
        }
        self::assertNull($bridge->readFrame());
        self::assertTrue($client->hasEnded());
        self::assertFalse($client->send('late'));
        $client->close();
        self::assertSame([], $server->clients());
    }

    public function testCloseOfTheProducerWaitsForTheAnswer(): void
    {
        $this->server();
        [$bridge, $client] = $this->connect();
        $client->send('last');
        $client->close(4000, 'the room is closed');
        self::assertFalse($client->send('too late'));
        self::assertSame('last', $bridge->readText());
        $close = $bridge->readClose();
        self::assertSame([4000, 'the room is closed'], [$close->code, $close->reason]);
        $bridge->send(Frame::TEXT, 'crossed it');
        $bridge->sendClose(4000);
        $this->next(EventType::Close);
        self::assertSame(4000, $this->next(EventType::ConnectionClosed)->code);
    }

    public function testEndOfFileWithoutACloseIs1006(): void
    {
        $this->server();
        [$bridge] = $this->connect();
        $bridge->leave();
        $event = $this->next(EventType::ConnectionClosed);
        self::assertSame(1006, $event->code);
        $event->close();
        self::assertFalse($event->write('x'));
    }

    /**
     * @dataProvider pollers
     *
     * @param class-string<Poller> $poller
     */
    #[DataProvider('pollers')]
    public function testWritingToAClosedBridgeDoesNotAffectOthers(string $poller): void
    {
        $server = $this->server($poller);
        [$gone, $client] = $this->connect();
        [$other] = $this->connect();
        $gone->send(Frame::TEXT, 'last words');
        $gone->leave();
        $client->send('into the void');
        $server->broadcast('and to all');
        self::assertSame('last words', $this->next(EventType::IO)->read());
        self::assertSame(1006, $this->next(EventType::ConnectionClosed)->code);
        self::assertSame('and to all', $other->readText());
    }

    public function testViolationIsAnErrorAndCloses(): void
    {
        $this->server(maxMessageBytes: 10);
        [$bridge] = $this->connect();
        $bridge->send(Frame::TEXT, str_repeat('x', 11));
        $event = $this->next(EventType::Error);
        self::assertSame(1009, $event->code);
        self::assertSame(ApacheWSError, $event->read());
        self::assertSame(1009, $this->next(EventType::ConnectionClosed)->code);
        self::assertSame(1009, $bridge->readClose()->code);
        self::assertNull($bridge->readFrame());
    }

    public function testInvalidPeerIsReportedAndAProbeIsNot(): void
    {
        $server = $this->server();
        (new Bridge($server->path, null))->leave();
        $stranger = new Bridge($server->path, null);
        $stranger->write("GET / HTTP/1.1\r\n\r\n");
        $event = $this->next(EventType::Invalid);
        self::assertSame(1002, $event->code);
        self::assertSame(ApacheWSError, $event->read());
        self::assertFalse($event->hasClient());
        self::assertNull($stranger->readFrame());
    }

    public function testProducerAccepts(): void
    {
        $server = $this->server();
        $asked = ['answer_required' => true, 'subprotocols' => ['offered' => ['chat'], 'chosen' => null]];
        [$bridge, $client] = $this->connect($asked);
        self::assertFalse($client->send('not yet'));
        self::assertSame([], $server->clients());
        try {
            $client->accept('other');
            self::fail('a subprotocol that was not offered was taken');
        } catch (InvalidArgument $error) {
            self::assertStringContainsString('chat', $error->getMessage());
        }
        self::assertTrue($client->accept('chat', ['Set-Cookie' => ['a=1', 'b=2']]));
        self::assertTrue($client->send('welcome'));
        self::assertFalse($client->accept());
        [$first, $payload] = $bridge->readFrame() ?? [0, ''];
        self::assertSame(Frame::FIN | Frame::ANSWER, $first);
        self::assertSame([
            'accept' => true,
            'headers' => [['Set-Cookie', 'a=1'], ['Set-Cookie', 'b=2']],
            'subprotocol' => 'chat',
        ], json_decode($payload, true));
        self::assertSame('welcome', $bridge->readText());
    }

    public function testProducerRejects(): void
    {
        $this->server();
        $asked = ['answer_required' => true];
        [$bridge, $client] = $this->connect($asked);
        self::assertTrue($client->reject(404, 'There is no such room.'));
        $answer = json_decode($bridge->readFrame()[1] ?? '', true);
        self::assertSame([
            'accept' => false,
            'headers' => [],
            'status' => 404,
            'body' => 'There is no such room.',
        ], $answer);
        $bridge->leave();
        self::assertSame('it was refused', $this->next(EventType::ConnectionClosed)->reason);

        [$another, $client] = $this->connect($asked);
        $client->close();
        self::assertSame(503, json_decode($another->readFrame()[1] ?? '', true)['status']);
    }

    public function testMoveBeforeTheAnswerEndsTheClient(): void
    {
        $this->server();
        [$bridge, $client] = $this->connect(['answer_required' => true]);
        $bridge->send(Frame::MOVE);
        $event = $this->next(EventType::ConnectionClosed);
        self::assertSame(1006, $event->code);
        self::assertFalse($client->accept());
    }

    /**
     * @return array<string, array{int, array<string, string>}>
     */
    public static function badAnswers(): array
    {
        return [
            'a status that cannot reject' => [200, []],
            'a name that is not a token' => [403, ['a b' => 'x']],
            'a line end in a value' => [403, ['X-A' => "a\r\nSet-Cookie: b"]],
            'a line end at the end of one' => [403, ['X-A' => "a\n"]],
            'a value that is not ISO 8859-1' => [403, ['X-A' => '€']],
            'a reserved header' => [403, ['Content-length' => '3']],
            'another reserved header' => [403, ['Sec-WebSocket-Accept' => 'x']],
            'too large' => [403, ['X-A' => str_repeat('x', 70000)]],
        ];
    }

    /**
     * @dataProvider badAnswers
     *
     * @param array<string, string> $headers
     */
    #[DataProvider('badAnswers')]
    public function testInvalidAnswerIsRejected(int $status, array $headers): void
    {
        $this->server();
        [, $client] = $this->connect(['answer_required' => true]);
        $this->expectException(InvalidArgument::class);
        $client->reject($status, '', $headers);
    }

    public function testAnswerIsRejectedIfApacheAccepts(): void
    {
        $this->server();
        [, $client] = $this->connect();
        self::assertFalse($client->accept());
        $this->expectException(NotAsked::class);
        $client->reject();
    }

    /**
     * @dataProvider pollers
     *
     * @param class-string<Poller> $poller
     */
    #[DataProvider('pollers')]
    public function testOnlyTheSlowClientIsClosed(string $poller): void
    {
        $server = $this->server($poller, maxQueueBytes: 100_000);
        [$slow, $slowClient] = $this->connect();
        [$quick] = $this->connect();
        $rounds = 0;
        while (!$slowClient->hasEnded()) {
            self::assertLessThan(1000, ++$rounds, 'it was never closed');
            $server->broadcast(str_repeat('x', 20_000));
            self::assertSame(20_000, strlen($quick->readText()));
        }
        $event = $this->next(EventType::ConnectionClosed);
        self::assertSame($slowClient, $event->getClient());
        self::assertSame(1013, $event->code);
        $quick->send(Frame::TEXT, 'still there');
        self::assertSame('still there', $this->next(EventType::IO)->read());
        // It gets whole frames, then the CLOSE.
        stream_set_blocking($slow->stream, false);
        $got = '';
        $deadline = microtime(true) + Bridge::DEADLINE_S;
        do {
            $got .= (string) fread($slow->stream, 1 << 20);
            $server->dequeue(0.001);
        } while (!stream_get_meta_data($slow->stream)['eof'] && microtime(true) < $deadline);
        $at = 0;
        $opcodes = [];
        while ($at < strlen($got)) {
            [$first, $length, $start] = Frame::decodeHeader($got, $at) ?? self::fail('half a header');
            $opcodes[$first] = true;
            $at = $start + $length;
        }
        self::assertSame(strlen($got), $at);
        self::assertSame(Frame::FIN | Frame::CLOSE, array_key_last($opcodes));
    }

    /**
     * @dataProvider pollers
     *
     * @param class-string<Poller> $poller
     */
    #[DataProvider('pollers')]
    public function testEchoSlowsAClientDownAndLosesNoMessage(string $poller): void
    {
        $server = $this->server($poller, maxQueueBytes: 300_000);
        [$bridge, $client] = $this->connect();
        stream_set_blocking($bridge->stream, false);
        $message = Frame::encode(Frame::TEXT, str_repeat('x', 5000));
        $toSend = str_repeat($message, 400);
        $received = 0;
        $most = 0;
        $deadline = microtime(true) + Bridge::DEADLINE_S;
        while ($received < 400 * strlen($message)) {
            self::assertLessThan($deadline, microtime(true), "only $received bytes came back");
            if ($toSend !== '') {
                $toSend = substr($toSend, (int) fwrite($bridge->stream, $toSend));
            }
            $event = $server->dequeue(0);
            if ($event?->type() === EventType::IO) {
                $event->write((string) $event->read());
                $most = max($most, $client->queuedBytes());
                continue; // it reads only when the producer is idle
            }
            $received += strlen((string) fread($bridge->stream, 30_000));
        }
        self::assertFalse($client->hasEnded());
        self::assertGreaterThan(0, $most, 'nothing ever waited: the test shows nothing');
        self::assertSame(0, $client->queuedBytes());
    }

    public function testManySmallMessagesAreQueuedInOrder(): void
    {
        $server = $this->server();
        [$bridge, $client] = $this->connect();
        for ($number = 0; $number < 60_000; $number++) {
            self::assertTrue($client->send((string) $number));
        }
        self::assertGreaterThan(0, $client->queuedBytes());
        stream_set_blocking($bridge->stream, false);
        $got = '';
        $deadline = microtime(true) + Bridge::DEADLINE_S;
        while ($client->queuedBytes() > 0 && microtime(true) < $deadline) {
            $got .= (string) fread($bridge->stream, 1 << 20);
            $server->dequeue(0);
        }
        $got .= (string) fread($bridge->stream, 1 << 20);
        $expected = implode('', array_map(
            static fn (int $number): string => Frame::encode(Frame::TEXT, (string) $number),
            range(0, 59_999)
        ));
        self::assertSame(strlen($expected), strlen($got));
        self::assertTrue($expected === $got, 'not in order');
    }

    /**
     * @dataProvider pollers
     *
     * @param class-string<Poller> $poller
     */
    #[DataProvider('pollers')]
    public function testAFloodDelaysTheOthersByATurn(string $poller): void
    {
        $server = $this->server($poller);
        $bridges = [];
        for ($number = 0; $number < 8; $number++) {
            [$bridges[], $client] = $this->connect();
            $client->state = 0;
        }
        $clients = $server->clients();
        foreach ($bridges as $bridge) {
            $bridge->write(str_repeat(Frame::encode(Frame::TEXT, 'x'), 3000));
        }
        $quiet = new Bridge($server->path);
        $since = $longest = 0;
        for ($total = 0; $total < 8 * 3000 + 2; $total++) {
            $event = $server->dequeue(Bridge::DEADLINE_S);
            self::assertNotNull($event);
            if (in_array($event->getClient(), $clients, true)) {
                self::assertSame('x', $event->read());
                $event->getClient()->state++;
                $since++;
                continue;
            }
            $longest = max($longest, $since);
            $since = 0;
            if ($event->type() === EventType::Accept) {
                $quiet->send(Frame::TEXT, 'quiet'); // while the others flood
            } else {
                self::assertSame('quiet', $event->read());
            }
        }
        self::assertLessThanOrEqual(8 * 100, $longest);
        self::assertSame(array_fill(0, 8, 3000), array_map(static fn (Client $one): int => $one->state, $clients));
        self::assertSame(ApacheWSNoData, $server->dequeue(0)?->type());

        // A client can have unread frames when its server closes.
        $bridges[0]->write(str_repeat(Frame::encode(Frame::TEXT, 'x'), 3000));
        $this->next(EventType::IO);
        $server->close();
        self::assertSame(1001, $bridges[0]->readClose()->code);
    }

    public function testLanguageOfTheBrowser(): void
    {
        $server = $this->server();
        $headers = [['accept-language', 'de;q=0.5,en-GB']];
        $request = ['method' => 'GET', 'uri' => '/echo.ws', 'headers' => $headers];
        [$bridge, $client] = $this->connect(['request' => $request]);
        self::assertSame('en-GB', $server->language($client));
        [$other, $client] = $this->connect();
        self::assertNull($server->language($client));
    }

    public function testFloodDoesNotStarveOthers(): void
    {
        $server = $this->server();
        [$flood] = $this->connect();
        [$other, $client] = $this->connect();
        stream_set_blocking($flood->stream, false);
        $messages = str_repeat(Frame::encode(Frame::TEXT, 'x'), 20_000);
        fwrite($flood->stream, $messages);
        $other->send(Frame::TEXT, 'me too');
        for ($taken = 0; $taken < 50_000; $taken++) {
            fwrite($flood->stream, $messages);
            if ($server->dequeue(Bridge::DEADLINE_S)?->getClient() === $client) {
                break;
            }
        }
        self::assertLessThan(50_000, $taken);
    }

    public function testQueuedEventsAreBounded(): void
    {
        $server = $this->server();
        $bridges = [];
        for ($number = 0; $number < 20; $number++) {
            [$bridges[]] = $this->connect();
        }
        foreach ($bridges as $bridge) {
            $bridge->write(str_repeat(Frame::encode(Frame::TEXT, 'x'), 500));
        }
        $this->next(EventType::IO);
        $loop = (new \ReflectionProperty($server, 'loop'))->getValue($server);
        assert($loop instanceof Loop);
        self::assertLessThan(1500, count($loop->connections->events));
        for ($number = 1; $number < 20 * 500; $number++) {
            $this->next(EventType::IO);
        }
        self::assertSame(ApacheWSNoData, $server->dequeue(0)?->type());
    }

    public function testDequeueIsNotReentrant(): void
    {
        $this->server = new Server("{$this->directory->path}/it.ws", log: function (): void {
            $this->server?->dequeue(0);
        });
        [$bridge] = $this->connect();
        $bridge->send(0x7, 'something to log');
        $this->expectException(\LogicException::class);
        $this->server->dequeue(Bridge::DEADLINE_S);
    }

    public function testPingIsAnswered(): void
    {
        $this->server();
        [$bridge, $client] = $this->connect();
        self::assertTrue($client->ping());
        [$first, $payload] = $bridge->readFrame() ?? [0, ''];
        self::assertSame(Frame::FIN | Frame::PING, $first);
        $bridge->send(Frame::PONG, 'not that');
        $bridge->send(Frame::PONG, $payload);
        $latency = $this->next(EventType::Pong)->latency;
        self::assertGreaterThanOrEqual(0.0, $latency);
        self::assertLessThan(Bridge::DEADLINE_S, $latency);
    }

    public function testGroupsReachTheirMembers(): void
    {
        $server = $this->server();
        [$ann, $annClient] = $this->connect();
        [$bob, $bobClient] = $this->connect();
        $room = $server->group('room');
        self::assertTrue($room->add($annClient));
        self::assertTrue($room->add($annClient));
        self::assertTrue($room->add($bobClient));
        self::assertSame($room, $server->group('room'));
        self::assertSame([$annClient, $bobClient], iterator_to_array($room));
        self::assertEquals(new Delivery(1, 0), $room->broadcast('hello', exclude: $annClient));
        self::assertSame('hello', $bob->readText());
        self::assertEquals(new Delivery(2, 0), $server->publish('all', 'room'));
        self::assertSame('all', $ann->readText());
        $bob->leave();
        $this->next(EventType::ConnectionClosed);
        self::assertCount(1, $room);
        self::assertSame([], $bobClient->groups());
        self::assertFalse($room->add($bobClient));
        $room->remove($annClient);
        self::assertEquals(new Delivery(0, 0), $server->publish('to an empty room', 'room'));
        self::assertEquals(new Delivery(1, 0), $server->publish('to all'));
        self::assertSame('to all', $ann->readText());
    }

    public function testEmptyGroupsAreRemoved(): void
    {
        $server = $this->server();
        [, $client] = $this->connect();
        $server->group('kept')->add($client);
        for ($number = 0; $number < 5000; $number++) {
            $server->group("room $number");
        }
        $loop = (new \ReflectionProperty($server, 'loop'))->getValue($server);
        assert($loop instanceof Loop);
        $groups = new \ReflectionProperty($loop->publications, 'groups');
        self::assertLessThan(500, count($groups->getValue($loop->publications)));
        self::assertTrue($server->group('kept')->contains($client));
    }

    public function testAnotherProgramPublishes(): void
    {
        $server = $this->server();
        [$bridge, $client] = $this->connect();
        $server->group('room')->add($client);
        $publisher = new Bridge($server->path, null);
        $publisher->write(Frame::encode(Frame::PUBLISH, '{"version": 1, "group": "room"}'));
        $publisher->send(Frame::TEXT, 'in pi', false);
        $publisher->send(Frame::CONTINUATION, 'eces');
        $publisher->send(Frame::BINARY, 'text');
        $this->turnUntil(static function () use ($publisher): bool {
            [$read, $none] = [[$publisher->stream], null];
            return stream_select($read, $none, $none, 0) === 1;
        });
        foreach ([1, 2] as $_) {
            [$first, $payload] = $publisher->readFrame() ?? [0, ''];
            self::assertSame(Frame::FIN | Frame::PUBLISH, $first);
            self::assertSame(['version' => 1, 'reached' => 1, 'skipped' => 0], json_decode($payload, true));
        }
        self::assertSame('in pieces', $bridge->readText());
        self::assertSame([Frame::FIN | Frame::BINARY, 'text'], $bridge->readFrame());
        $publisher->leave();
        self::assertSame(ApacheWSNoData, $server->dequeue(0.01)?->type());
    }

    public function testPublishFailsIfNoProducerListens(): void
    {
        $this->expectException(NotListening::class);
        \apachews\publish("{$this->directory->path}/none.ws", 'hello');
    }

    public function testPublishWaitsForTheAnswerUntilItsTimeout(): void
    {
        $path = "{$this->directory->path}/mute.ws";
        $mute = stream_socket_server("unix://$path");
        self::assertIsResource($mute);
        $begun = hrtime(true);
        try {
            \apachews\publish($path, 'hello', timeout: 0.2);
            self::fail('the publication was answered');
        } catch (PublishFailed $error) {
            self::assertSame($path, $error->path);
        }
        $took = (hrtime(true) - $begun) / 1e9;
        self::assertGreaterThanOrEqual(0.2, $took);
        self::assertLessThan(Bridge::DEADLINE_S, $took);
    }

    public function testLargeMessageIsPublished(): void
    {
        $path = "{$this->directory->path}/seed.ws";
        $program = new Program(__DIR__ . '/programs/seed.php', $path);
        $bridge = new Bridge($path);
        $bridge->send(Frame::TEXT, 'here');
        $bridge->readText();
        $data = str_repeat("\0\xff", 1 << 20);
        self::assertEquals(new Delivery(1, 0), \apachews\publish($path, $data));
        $frame = $bridge->readFrame();
        self::assertSame(Frame::FIN | Frame::BINARY, $frame[0] ?? 0);
        self::assertTrue($data === ($frame[1] ?? ''));
        self::assertSame('', $program->kill());
    }

    public function testCloseClosesClientsAndEndsTheLoop(): void
    {
        $server = $this->server();
        [$bridge, $client] = $this->connect();
        $server->close();
        $server->close();
        self::assertSame(1001, $bridge->readClose()->code);
        self::assertNull($bridge->readFrame());
        self::assertFileDoesNotExist($server->path);
        $events = iterator_to_array($server);
        self::assertCount(1, $events);
        self::assertSame([EventType::ConnectionClosed, 1001], [$events[0]->type(), $events[0]->code]);
        self::assertSame($client, $events[0]->getClient());
        self::assertNull($server->dequeue());
        self::assertNull($server->dequeue(0));
    }

    /**
     * @dataProvider pollers
     *
     * @param class-string<Poller> $poller
     */
    #[DataProvider('pollers')]
    public function testDrainMovesClientsWithoutLosingMessages(string $poller): void
    {
        $server = $this->server($poller);
        [$bridge, $client] = $this->connect();
        $onTheWay = new Bridge($server->path);
        $server->drain();
        self::assertFileDoesNotExist($server->path);
        self::assertSame([Frame::FIN | Frame::MOVE, ''], $bridge->readFrame());
        $bridge->send(Frame::TEXT, 'before the move');
        $bridge->send(Frame::MOVE);
        $said = [];
        while (($event = $server->dequeue(Bridge::DEADLINE_S)) !== null) {
            $said[] = $event->type()->name;
            if ($event->type() === EventType::IO) {
                self::assertTrue($event->write('answer'));
            } elseif ($event->type() === EventType::Accept) {
                self::assertSame([Frame::FIN | Frame::MOVE, ''], $onTheWay->readFrame());
                $onTheWay->send(Frame::MOVE);
            } elseif ($event->getClient() === $client) {
                self::assertSame(1012, $event->code);
                self::assertTrue($event->write('last word'));
                $event->close();
            }
        }
        sort($said);
        self::assertSame(['Accept', 'ConnectionClosed', 'ConnectionClosed', 'IO'], $said);
        self::assertSame('answer', $bridge->readText());
        self::assertSame('last word', $bridge->readText());
        self::assertNull($bridge->readFrame());
        self::assertNull($onTheWay->readFrame());
    }

    public function testDrainAbandonsClientsThatDoNotMoveInTime(): void
    {
        $server = $this->server();
        [$bridge] = $this->connect();
        $server->drain(0.05);
        self::assertSame(1012, $this->next(EventType::ConnectionClosed)->code);
        self::assertNull($server->dequeue(Bridge::DEADLINE_S));
        self::assertSame([Frame::FIN | Frame::MOVE, ''], $bridge->readFrame());
        self::assertNull($bridge->readFrame());
    }

    public function testLanguageOfTheProgramDoesNotMatter(): void
    {
        $before = setlocale(LC_ALL, '0');
        setlocale(LC_ALL, 'de_DE.UTF-8', 'fr_FR.UTF-8', 'C.UTF-8');
        try {
            $server = $this->server();
            $bridges = [];
            for ($number = 0; $number < 20; $number++) {
                $bridges[] = new Bridge($server->path);
            }
            foreach ($bridges as $_) {
                $this->next(EventType::Accept);
            }
            self::assertSame(ApacheWSNoData, $server->dequeue(0)?->type());
            self::assertSame([], $this->logged);
        } finally {
            setlocale(LC_ALL, (string) $before);
        }
    }

    public function testSignalsAreHandledBetweenEvents(): void
    {
        if (!function_exists('pcntl_signal')) {
            self::markTestSkipped('ext-pcntl is not loaded');
        }
        $server = $this->server();
        [$bridge] = $this->connect();
        self::assertTrue($server->onSignal(SIGUSR2, $server->close(...)));
        posix_kill((int) getmypid(), SIGUSR2);
        $this->next(EventType::ConnectionClosed);
        self::assertNull($server->dequeue(Bridge::DEADLINE_S));
        self::assertSame(1001, $bridge->readClose()->code);
        pcntl_signal(SIGUSR2, SIG_DFL);
    }

    public function testHandlersOfTheProgramCanClose(): void
    {
        if (!function_exists('pcntl_async_signals')) {
            self::markTestSkipped('ext-pcntl is not loaded');
        }
        $server = $this->server();
        $this->connect();
        $wasAsync = pcntl_async_signals(true);
        pcntl_signal(SIGALRM, $server->close(...));
        pcntl_alarm(1);
        $this->next(EventType::ConnectionClosed);
        self::assertNull($server->dequeue(Bridge::DEADLINE_S));
        pcntl_signal(SIGALRM, SIG_DFL);
        pcntl_async_signals($wasAsync);
    }

    public function testIgnoredFramesAreLogged(): void
    {
        $server = $this->server();
        [$bridge, $client] = $this->connect();
        $bridge->send(0x7, 'later versions');
        $this->turnUntil(fn (): bool => $this->logged !== []);
        self::assertSame(["$server->path: {$client->guid()}: ignored frames of opcodes 0x7"], $this->logged);
    }

    public function testClientsAreFreedAfterTheirEnd(): void
    {
        $server = $this->server();
        gc_disable();
        [$bridge, $client] = $this->connect();
        $client->state = $client; // a cycle that the program made
        $server->group('room')->add($client);
        $client->state = null;
        $weak = \WeakReference::create($client);
        unset($client);
        $bridge->leave();
        unset($bridge);
        $this->next(EventType::ConnectionClosed);
        self::assertNull($weak->get());
        gc_enable();
    }
}
