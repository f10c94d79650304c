<?php
/** An order page that notifies the packer of each order at once. */
require __DIR__ . '/publish.php';

const SOCKET = '/var/www/html/notify/notify.ws';
const PACKER = 'ann';

$problem = '';
if ($_SERVER['REQUEST_METHOD'] === 'POST') {
    $item = trim($_POST['item'] ?? '');
    if ($item === '' || strlen($item) > 200) {
        http_response_code(422);
        $problem = 'Say what to send, in at most 200 bytes.';
    } else {
        // … store the order in the database here. The notification may fail; that must not
        // fail the order.
        try {
            $path = getenv('NOTIFY_SOCKET') ?: SOCKET;
            $notice = json_encode(['title' => 'New order', 'text' => $item], JSON_INVALID_UTF8_SUBSTITUTE);
            $reached = apachews_publish($path, $notice, PACKER);
        } catch (RuntimeException $error) {
            error_log($error->getMessage());
            $reached = 0;
        }
        header('Location: ?' . http_build_query(['notified' => $reached]), true, 303);
        exit;
    }
}
?>
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>Order</title>
<h1>Order</h1>
<?php if (isset($_GET['notified'])): ?>
<p>Thank you. <?= (int) $_GET['notified'] ?> notified.
<?php endif ?>
<form method="post">
  <label>Item <input name="item" maxlength="200" required></label>
  <button>Order</button>
  <?= htmlspecialchars($problem) ?>
</form>
